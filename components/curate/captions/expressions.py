"""Expressions that landmarks can tell, each as a strength by frame: 1 and more is shown.

The limits told people apart best that were rendered with one expression each (performer, bank for training, 128 px, 22
people for the smile and 10 for the brows, half of the pictures with an open jaw, small turns of the head). Real faces
show more in passing while they talk: no limit was chosen on them. `python -m tests.benchmarks.expressions` says how
well other performers' expressions are told.
"""

import numpy as np
from numpy.typing import NDArray

from components.curate.video.faces import FEATURES, Track, once_a_track
from components.dataset.states import SPEAK

OPEN_GAP = 0.12
"""Mouth gap (in eye distances) of an open mouth."""
_SMILE = 0.02
_JAW_PULL = 0.14
"""How much an opening jaw looks like a smile, by mouth gap."""
_BROWS_UP, _BROWS_SLANT, _BROWS_DOWN = 0.018, 0.0085, 0.0125
"""How far brows go up, their inner ends above the outer ones, and down (in eye distances)."""
_TURNED_RAD = 0.3
"""A head turned further from its usual direction looks like many an expression: it shows none."""
_WIDE = 0.1
"""How much further than usual wide eyes are open."""

_ROUNDS, _FAR = 5, 2.0
"""Times that a fit is repeated without the frames that lie further from it than so many standard deviations."""
_ENOUGH = 48
"""Frames with a face from which on that is told apart from expressions."""

Strengths = dict[str, NDArray[np.float64]]


@once_a_track
def usual_face(track: Track, states: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The features that a person's face has on each frame as long as it shows nothing, float32 [T, F].

    They are the person's medians, but for lips and brows, which lie elsewhere in the picture of a turned head, and
    while somebody talks. How far is fitted to the person by least squares, without the frames that do not fit: they
    show something.

    Args:
        track: the person.
        states: the person's states [T].
    """
    middle = np.nanmedian(track.values, axis=0)
    usual = np.tile(middle, (len(track.values), 1))
    if track.seen.sum() < _ENOUGH:
        return usual
    pitch, yaw = (track.column(name).astype(np.float64) - middle[FEATURES.index(name)] for name in ("pitch", "yaw"))
    causes = np.stack([np.ones(len(yaw)), pitch, yaw, np.abs(yaw), states == SPEAK], axis=1)
    opened = np.maximum(track.column("gap") - middle[FEATURES.index("gap")], 0.0)
    for name, values in {
        "smile": track.column("smile") - _JAW_PULL * opened,  # as `strengths` measures it
        "brow_inner": track.column("brow_inner"),
        "brow_outer": track.column("brow_outer"),
    }.items():
        usual[:, FEATURES.index(name)] = np.nan_to_num(_explained(values, causes, track.seen))
    return usual


def _explained(
    values: NDArray[np.float32], causes: NDArray[np.float64], seen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """What causes [T, C] explain of most of the values [T]."""
    fits = seen
    for _ in range(_ROUNDS):
        factors = np.linalg.lstsq(causes[fits], values[fits].astype(np.float64), rcond=None)[0]
        left = np.where(seen, values - causes @ factors, np.nan)
        left -= np.nanmedian(left)
        fits = seen & (np.abs(left) < _FAR * 1.4826 * np.nanmedian(np.abs(left)))
        if fits.sum() <= causes.shape[1]:
            break
    return np.asarray(values - left)


def strengths(features: NDArray[np.float32], usual: NDArray[np.float32]) -> Strengths:
    """How strongly each frame shows an expression, float64 [T] by its name; NaN where the face is not seen.

    Args:
        features: face features [T, F] by faces.FEATURES.
        usual: the features of a face that shows nothing, [T, F] or [F].

    Returns:
        smile (corners of the mouth apart and up), surprise (brows up), sad (inner ends of the brows up), frown (brows
        down) and wide_eyes.
    """

    def change(name: str) -> NDArray[np.float64]:
        column = FEATURES.index(name)
        return features[:, column].astype(np.float64) - usual[..., column]

    inner, outer = change("brow_inner"), change("brow_outer")
    usual_eyes = np.maximum(usual[..., FEATURES.index("eyes")], 1e-6)
    found = {
        "smile": (change("smile") - _JAW_PULL * np.maximum(change("gap"), 0.0)) / _SMILE,
        "surprise": outer / _BROWS_UP,
        "sad": np.minimum(inner - outer, inner) / _BROWS_SLANT,
        "frown": -outer / _BROWS_DOWN,
        "wide_eyes": change("eyes") / usual_eyes / _WIDE,
    }
    turned = np.abs(change("yaw")) > _TURNED_RAD
    return {name: np.where(turned, 0.0, values) for name, values in found.items()}
