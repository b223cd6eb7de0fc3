"""Lip sync: whether the mouth opens with the ground truth's mouth, and rests while the character listens."""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import LISTEN, SPEAK, Array, GroundTruth
from components.evaluate.metrics.anchored import Anchored, anchored, lagged_correlation, pearson, smooth

MAX_LAG = 6
"""Search range of the lag in frames (a quarter of a second)."""
SYLLABLE_FRAMES = 4.0
"""Sigma of the smoothing that removes syllables and leaves posture and smiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncScores:
    """Sync of all cases."""

    mouth: Anchored
    """Correlation at lag 0 of the measured mouth opening with the ground truth on speaking frames."""
    rest: Anchored
    """1 - (mouth movement while listening / while speaking)."""
    best: tuple[float | None, ...]
    """Highest correlation of each case over all lags."""
    lags: tuple[int | None, ...]
    """Its lag in frames; positive means that the video is late."""


def mouth_match(mouth: Array, ground_truth: GroundTruth) -> float:
    """Correlate a mouth opening, float [T], with the ground truth at lag 0 on speaking frames."""
    speaking = ground_truth.state == SPEAK
    return pearson(mouth[speaking], ground_truth.jaw_open[speaking])


def mouth_rest(mouth: Array, ground_truth: GroundTruth) -> float:
    """Compare mouth movement while listening with speaking: 1 is still, 0 is as much as while speaking."""
    speaking, listening = ground_truth.state == SPEAK, ground_truth.state == LISTEN
    if min(speaking.sum(), listening.sum()) < 12:
        return float("nan")
    # Speech moves the mouth several times a second; slow movement such as a smile does not count.
    quick = mouth - smooth(mouth, SYLLABLE_FRAMES)
    loud = float(quick[speaking].std())
    return float(np.clip(1 - quick[listening].std() / loud, -1, 1)) if loud > 1e-9 else 0.0


def sync_scores(
    generated: list[Array], reconstructed: list[Array], ground_truths: list[GroundTruth], groups: list[str]
) -> SyncScores:
    """Score measured mouth openings.

    Args:
        generated: float [T] mouth opening of each generated video.
        reconstructed: the same of each reconstructed ground truth.
        ground_truths: ground-truth tracks of each case.
        groups: conversation of each case.
    """
    found = [
        lagged_correlation(m, t.jaw_open, t.state == SPEAK, MAX_LAG)
        for m, t in zip(generated, ground_truths, strict=True)
    ]
    return SyncScores(
        mouth=anchored(
            np.array([[mouth_match(m, t) for t in ground_truths] for m in generated]),
            np.array([mouth_match(m, t) for m, t in zip(reconstructed, ground_truths, strict=True)]),
            groups,
        ),
        rest=anchored(
            np.array([[mouth_rest(m, t) for t in ground_truths] for m in generated]),
            np.array([mouth_rest(m, t) for m, t in zip(reconstructed, ground_truths, strict=True)]),
            groups,
        ),
        best=tuple(None if np.isnan(r) else round(r, 4) for r, _ in found),
        lags=tuple(None if np.isnan(r) else lag for r, lag in found),
    )
