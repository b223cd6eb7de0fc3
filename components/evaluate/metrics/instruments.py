"""All instruments together: fitted once on other people's true renders, read once from every video."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from components.evaluate.cases.cases import SIGNALS, Array, Case, ProbeClip
from components.evaluate.metrics.anchored import nanmean, pearson
from components.evaluate.metrics.face import prepare
from components.evaluate.metrics.identity import Embedder, fit_embedder, thumbnails
from components.evaluate.metrics.listening import Reaction
from components.evaluate.metrics.probes import GOOD_PROBE, VIEWS, Probe, fit_probe

FEATURES = 24
"""Picture features of the Frechet distance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the instruments read from one video of T frames."""

    signals: dict[str, Array]
    """float [T] of every signal, relative to the clip's mean."""
    embeddings: Array
    """float [T, D]: identity."""
    features: Array
    """float [T, FEATURES]: general picture features."""

    @property
    def reaction(self) -> Reaction:
        """What the listening metrics use."""
        return Reaction(pitch=self.signals["pitch"], smile=self.signals["smile"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruments:
    """Fitted probes, identity embedding and picture features."""

    probes: dict[str, Probe]
    """One for each signal."""
    embedder: Embedder
    """Identity."""
    mean: Array
    """float [D]: mean thumbnail of the picture features."""
    basis: Array
    """float [D, FEATURES]."""

    def read(self, video: Array) -> Reading:
        """Read everything from a uint8 video [T, H, W, 3] of one person in one shot."""
        clip = prepare(video)
        return Reading(
            signals={name: probe.read(clip) for name, probe in self.probes.items()},
            embeddings=self.embedder.embed(video),
            features=(thumbnails(video) - self.mean) @ self.basis,
        )


def soften(video: Array) -> Array:
    """A slightly blurred copy: generated frames are softer than any true one, and the instruments must not care."""
    import cv2

    return np.stack([cv2.GaussianBlur(frame, (0, 0), frame.shape[0] / 128) for frame in video])


def fit_instruments(clips: list[ProbeClip], passed: list[Array]) -> Instruments:
    """Fit everything.

    Args:
        clips: people who are never scored, with their truth.
        passed: their frames through the autoencoder, uint8 [4k + 1, H, W, 3] each.
    """
    people = [[clip.frames, video, soften(video)] for clip, video in zip(clips, passed, strict=True)]
    prepared = [[prepare(video) for video in renditions] for renditions in people]
    probes = {name: fit_probe(prepared, [clip.signals[name] for clip in clips], VIEWS[name]) for name in SIGNALS}
    stack = thumbnails(np.concatenate(passed))
    mean = stack.mean(0)
    _, vectors = np.linalg.eigh(np.cov(stack - mean, rowvar=False))
    embedder = fit_embedder([np.concatenate(renditions) for renditions in people])
    return Instruments(probes=probes, embedder=embedder, mean=mean, basis=vectors[:, ::-1][:, :FEATURES].copy())


def check_instruments(cases: list[Case], truth: list[Reading], passed: list[Reading]) -> dict[str, Any]:
    """How well the instruments read held-out truth.

    Args:
        cases: the benchmark's cases.
        truth: readings of their true frames.
        passed: readings of their true frames through the autoencoder.
    """
    report: dict[str, Any] = {}
    for name in SIGNALS:
        on_truth = [pearson(r.signals[name], getattr(c.truth, name)) for r, c in zip(truth, cases, strict=True)]
        on_passed = [pearson(r.signals[name], getattr(c.truth, name)) for r, c in zip(passed, cases, strict=True)]
        sharp, through = nanmean(np.array(on_truth)), nanmean(np.array(on_passed))
        report[name] = {
            "correlation_on_truth": sharp,
            "correlation_through_autoencoder": through,
            "lowest_person": float(np.nanmin(on_passed)),
            "good": sharp >= GOOD_PROBE,
        }
    return report
