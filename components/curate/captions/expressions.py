"""Measure expressions from face landmarks as a strength per frame; 1 or more means that the expression is visible.

The thresholds were tuned on rendered people with one expression each (128 px, 22 people for the smile and 10 for the
brows, half of the images with an open jaw, small head rotations). Real faces show more in passing while they talk; no
threshold was tuned on them. `python -m tests.benchmarks.expressions` measures the accuracy on other rendered people.
"""

import numpy as np
from numpy.typing import NDArray

from components.curate.video.faces import FEATURES, Track, once_per_track
from components.dataset.states import SPEAK

OPEN_GAP = 0.12
"""Mouth gap of an open mouth, in eye distances."""
_SMILE = 0.02
_JAW_PULL = 0.14
"""Increase of the smile feature per unit of mouth gap, because an opening jaw resembles a smile."""
_BROWS_UP, _BROWS_SLANT, _BROWS_DOWN = 0.018, 0.0085, 0.0125
"""Movement of raised, slanted and lowered brows, in eye distances."""
_TURNED_RAD = 0.3
"""Yaw from the person's median above which no expression is reported, because a turned head distorts the landmarks."""
_WIDE = 0.1
"""Relative increase of eye opening for wide eyes."""

_ROUNDS, _OUTLIER = 5, 2.0
"""Iterations of the robust fit, and its outlier limit in standard deviations."""
_MIN_FRAMES = 48
"""Frames with a face below which the medians are used without a fit."""

Strengths = dict[str, NDArray[np.float64]]


@once_per_track
def neutral_face(track: Track, states: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the features of a person's neutral face for each frame, float32 [T, F].

    These are the person's medians, except for lips and brows, whose position depends on head rotation and on talking.
    That dependence is fitted per person by robust least squares; the outlier frames show an expression.

    Args:
        track: the person.
        states: the person's states, uint8 [T].
    """
    median = np.nanmedian(track.values, axis=0)
    neutral = np.tile(median, (len(track.values), 1))
    if track.seen.sum() < _MIN_FRAMES:
        return neutral
    pitch, yaw = (track.column(name).astype(np.float64) - median[FEATURES.index(name)] for name in ("pitch", "yaw"))
    factors = np.stack([np.ones(len(yaw)), pitch, yaw, np.abs(yaw), states == SPEAK], axis=1)
    opened = np.maximum(track.column("gap") - median[FEATURES.index("gap")], 0.0)
    for name, values in {
        "smile": track.column("smile") - _JAW_PULL * opened,  # as in `expression_strengths`
        "brow_inner": track.column("brow_inner"),
        "brow_outer": track.column("brow_outer"),
    }.items():
        neutral[:, FEATURES.index(name)] = np.nan_to_num(_robust_fit(values, factors, track.seen))
    return neutral


def _robust_fit(
    values: NDArray[np.float32], factors: NDArray[np.float64], seen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the part of values [T] that a robust linear fit explains by factors [T, C], float64 [T]."""
    fits = seen
    for _ in range(_ROUNDS):
        weights = np.linalg.lstsq(factors[fits], values[fits].astype(np.float64), rcond=None)[0]
        residual = np.where(seen, values - factors @ weights, np.nan)
        residual -= np.nanmedian(residual)
        fits = seen & (np.abs(residual) < _OUTLIER * 1.4826 * np.nanmedian(np.abs(residual)))
        if fits.sum() <= factors.shape[1]:
            break
    return np.asarray(values - residual)


def expression_strengths(features: NDArray[np.float32], neutral: NDArray[np.float32]) -> Strengths:
    """Return the strength of each expression per frame, float64 [T] by name; NaN where the face is not detected.

    Args:
        features: face features [T, F], columns as in faces.FEATURES.
        neutral: features of the neutral face, [T, F] or [F].

    Returns:
        smile (mouth corners apart and up), surprise (brows up), sad (inner brow ends up), frown (brows down) and
        wide_eyes.
    """

    def change(name: str) -> NDArray[np.float64]:
        column = FEATURES.index(name)
        return features[:, column].astype(np.float64) - neutral[..., column]

    inner, outer = change("brow_inner"), change("brow_outer")
    neutral_eyes = np.maximum(neutral[..., FEATURES.index("eyes")], 1e-6)
    strengths = {
        "smile": (change("smile") - _JAW_PULL * np.maximum(change("gap"), 0.0)) / _SMILE,
        "surprise": outer / _BROWS_UP,
        "sad": np.minimum(inner - outer, inner) / _BROWS_SLANT,
        "frown": -outer / _BROWS_DOWN,
        "wide_eyes": change("eyes") / neutral_eyes / _WIDE,
    }
    turned = np.abs(change("yaw")) > _TURNED_RAD
    return {name: np.where(turned, 0.0, values) for name, values in strengths.items()}
