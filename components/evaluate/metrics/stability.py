"""Stability of a long rollout: drift, seams, freezes and collapse, built on serving's drift meter."""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import Array
from components.evaluate.metrics.anchored import nanmean
from lpm_model.config import VIDEO_FPS
from serving.drift import (
    FREEZE_EPS,
    Drift,
    DriftMeter,
    cosine_distance,
    frame_change,
    laplacian_energy,
    mean_lab,
    sharpness_log2,
)

EDGE_FRACTION = 0.15
"""Fraction of the rollout that counts as its beginning and as its end."""
WINDOW_S = 2.0
"""Length of a window of the freeze rate and of the drift over time (s)."""
FREEZE_WINDOW = round(WINDOW_S * VIDEO_FPS)
"""WINDOW_S in frames."""
COLLAPSE_PEAK = 0.6
"""Autocorrelation peak above which recurring returns to the first frames count as a collapse onto the sink."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """Change of one rollout from its first 15 % to its last 15 %."""

    identity: float
    """Distance (1 - cosine) of the mean identity embeddings."""
    colour_de: float
    """Distance of the mean colours in CIE Lab."""
    sharpness_log2: float
    """log2 of the ratio of the Laplacian energies; negative means blurrier."""
    boundary_jump: float
    """Mean change between frames at chunk boundaries divided by that inside chunks: 1 is seamless."""
    freeze_rate: float
    """Fraction of 2 s windows without motion."""
    sink_peak: float
    """Highest autocorrelation of the similarity to the first frames at a lag over 1 s."""
    sink_collapse: bool
    """Whether the video keeps returning to its first frames."""
    over_time: list[Drift]
    """Each window of WINDOW_S against the first, from the meter of a live server, with the bench's embedding."""


def edges(values: Array) -> tuple[Array, Array]:
    """Return the first and the last 15 % of a sequence, at least one entry each."""
    count = max(1, round(EDGE_FRACTION * len(values)))
    return values[:count], values[-count:]


def boundary_jump(change: Array, chunk_frames: int) -> float:
    """Divide the mean change at chunk boundaries by that inside chunks.

    Args:
        change: float [T - 1] from `frame_change`, of a video that starts with a chunk.
        chunk_frames: frames per chunk.
    """
    border = (np.arange(1, change.size + 1) % chunk_frames) == 0
    inside = nanmean(change[~border])
    return nanmean(change[border]) / inside if inside > 1e-9 else 1.0


def freeze_rate(change: Array) -> float:
    """Return the fraction of 2 s windows whose mean change is below FREEZE_EPS."""
    starts = range(0, max(1, change.size - FREEZE_WINDOW + 1), FREEZE_WINDOW // 2)
    return float(np.mean([change[s : s + FREEZE_WINDOW].mean() < FREEZE_EPS for s in starts]))


def sink_peak(similarity: Array, min_lag: int = 24) -> float:
    """Return the highest autocorrelation of the similarity to the first frames [T], at lags `min_lag` to T / 3."""
    centred = similarity - similarity.mean()
    power = float((centred * centred).mean())
    if power < 1e-10:
        return 0.0
    lags = range(min_lag, max(min_lag + 1, len(similarity) // 3))
    return max(float((centred[lag:] * centred[:-lag]).mean()) / power for lag in lags)


def drift_report(video: Array, embeddings: Array, features: Array, chunk_frames: int) -> DriftReport:
    """Measure the drift of one rollout.

    Args:
        video: uint8 [T, H, W, 3].
        embeddings: identity embeddings [T, D].
        features: general image features [T, E].
        chunk_frames: frames per chunk of the generator.
    """
    first, last = edges(embeddings)
    colour_first, colour_last = edges(mean_lab(video))
    sharp_first, sharp_last = edges(laplacian_energy(video))
    change = frame_change(video)
    start = edges(features)[0].mean(0)
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(start)
    similarity = features @ start / np.where(lengths > 1e-12, lengths, 1)
    peak = sink_peak(similarity)
    return DriftReport(
        identity=cosine_distance(first, last),
        colour_de=float(np.linalg.norm(colour_last.mean(0) - colour_first.mean(0))),
        sharpness_log2=sharpness_log2(sharp_first, sharp_last),
        boundary_jump=boundary_jump(change, chunk_frames),
        freeze_rate=freeze_rate(change),
        sink_peak=peak,
        sink_collapse=peak > COLLAPSE_PEAK,
        over_time=DriftMeter(WINDOW_S).add(video, embeddings),
    )
