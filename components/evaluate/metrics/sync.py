"""Audio-visual sync: does the mouth open when the truth's mouth opens, and rest while the character listens?"""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import LISTEN, SPEAK, Array, Truth
from components.evaluate.metrics.anchored import Anchored, anchored, lagged_correlation, pearson, smooth

MAX_LAG = 6
"""Frames (a quarter of a second) to either side within which the best lag is looked for."""

SYLLABLE_FRAMES = 4.0
"""Smoothing that leaves posture and smiles and takes syllables away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncScores:
    """Sync of all cases."""

    mouth: Anchored
    """Correlation at lag 0 of the probed mouth opening with the truth on speaking frames."""
    rest: Anchored
    """1 - (mouth movement while listening / while speaking)."""
    best: tuple[float | None, ...]
    """Best correlation of each case over the lags."""
    lags: tuple[int | None, ...]
    """Its lag in frames; positive means that the video comes late."""


def mouth_match(mouth: Array, truth: Truth) -> float:
    """Correlation at lag 0 of float [T] mouth opening with the truth on the frames where the truth speaks."""
    speaking = truth.state == SPEAK
    return pearson(mouth[speaking], truth.jaw_open[speaking])


def mouth_rest(mouth: Array, truth: Truth) -> float:
    """How much quieter the mouth is while the truth listens: 1 is still, 0 is as lively as while speaking."""
    speaking, listening = truth.state == SPEAK, truth.state == LISTEN
    if min(speaking.sum(), listening.sum()) < 12:
        return float("nan")
    # Speech moves the mouth several times a second; what a slow smile does to it does not count.
    quick = mouth - smooth(mouth, SYLLABLE_FRAMES)
    loud = float(quick[speaking].std())
    return float(np.clip(1 - quick[listening].std() / loud, -1, 1)) if loud > 1e-9 else 0.0


def sync_scores(generated: list[Array], autoencoded: list[Array], truths: list[Truth], groups: list[str]) -> SyncScores:
    """Score probed mouth openings.

    Args:
        generated: float [T] mouth opening of each generated video.
        autoencoded: the same of the truth passed through the autoencoder.
        truths: truth tracks.
        groups: conversation of each case.
    """
    found = [
        lagged_correlation(m, t.jaw_open, t.state == SPEAK, MAX_LAG) for m, t in zip(generated, truths, strict=True)
    ]
    return SyncScores(
        mouth=anchored(
            np.array([[mouth_match(m, t) for t in truths] for m in generated]),
            np.array([mouth_match(m, t) for m, t in zip(autoencoded, truths, strict=True)]),
            groups,
        ),
        rest=anchored(
            np.array([[mouth_rest(m, t) for t in truths] for m in generated]),
            np.array([mouth_rest(m, t) for m, t in zip(autoencoded, truths, strict=True)]),
            groups,
        ),
        best=tuple(None if np.isnan(r) else round(r, 4) for r, _ in found),
        lags=tuple(None if np.isnan(r) else lag for r, lag in found),
    )
