"""All probes together: fitted once on other people's ground truth, then applied to every video."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from components.evaluate.cases.cases import SIGNALS, Array, Case, ProbeClip
from components.evaluate.metrics.anchored import nanmean, pearson
from components.evaluate.metrics.face import prepare
from components.evaluate.metrics.identity import Embedder, fit_embedder, thumbnails
from components.evaluate.metrics.listening import Reaction
from components.evaluate.metrics.probes import MIN_PROBE_CORRELATION, VIEWS, Probe, fit_probe

FEATURES = 24
"""Image features of the Frechet distance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What the probes measure in one video of T frames."""

    signals: dict[str, Array]
    """float [T] of every signal, relative to the clip's mean."""
    embeddings: Array
    """float [T, D]: identity."""
    features: Array
    """float [T, FEATURES]: general image features."""

    @property
    def reaction(self) -> Reaction:
        """Input of the listening metrics."""
        return Reaction(pitch=self.signals["pitch"], smile=self.signals["smile"])


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSet:
    """Fitted signal probes, identity embedding and image features."""

    probes: dict[str, Probe]
    """One per signal."""
    embedder: Embedder
    """Identity."""
    mean: Array
    """float [D]: mean thumbnail of the image features."""
    basis: Array
    """float [D, FEATURES]."""

    def measure(self, video: Array) -> Measurement:
        """Measure a uint8 video [T, H, W, 3] of one person in one shot."""
        clip = prepare(video)
        return Measurement(
            signals={name: probe.read(clip) for name, probe in self.probes.items()},
            embeddings=self.embedder.embed(video),
            features=(thumbnails(video) - self.mean) @ self.basis,
        )


def soften(video: Array) -> Array:
    """Blur a video slightly: generated frames are softer than real ones, and probes must not depend on that."""
    import cv2

    return np.stack([cv2.GaussianBlur(frame, (0, 0), frame.shape[0] / 128) for frame in video])


def fit_probe_set(clips: list[ProbeClip], reconstructed: list[Array]) -> ProbeSet:
    """Fit all probes.

    Args:
        clips: people who are never scored, with their ground truth.
        reconstructed: their frames through the autoencoder, uint8 [4k + 1, H, W, 3] each.
    """
    people = [[clip.frames, video, soften(video)] for clip, video in zip(clips, reconstructed, strict=True)]
    prepared = [[prepare(video) for video in renditions] for renditions in people]
    probes = {name: fit_probe(prepared, [clip.signals[name] for clip in clips], VIEWS[name]) for name in SIGNALS}
    stack = thumbnails(np.concatenate(reconstructed))
    mean = stack.mean(0)
    _, vectors = np.linalg.eigh(np.cov(stack - mean, rowvar=False))
    embedder = fit_embedder([np.concatenate(renditions) for renditions in people])
    return ProbeSet(probes=probes, embedder=embedder, mean=mean, basis=vectors[:, ::-1][:, :FEATURES].copy())


def check_probes(
    cases: list[Case], ground_truth: list[Measurement], reconstructed: list[Measurement]
) -> dict[str, Any]:
    """Check every signal probe against the ground truth of the scored people.

    Args:
        cases: the benchmark's cases.
        ground_truth: measurements of their ground-truth frames.
        reconstructed: measurements of the same frames through the autoencoder.
    """
    report: dict[str, Any] = {}
    for name in SIGNALS:
        direct, through = (
            np.array(
                [pearson(m.signals[name], getattr(c.ground_truth, name)) for m, c in zip(found, cases, strict=True)]
            )
            for found in (ground_truth, reconstructed)
        )
        correlation = nanmean(direct)
        report[name] = {
            "correlation_on_ground_truth": correlation,
            "correlation_through_autoencoder": nanmean(through),
            "lowest_person": float(np.nanmin(through)),
            "good": correlation >= MIN_PROBE_CORRELATION,
        }
    return report
