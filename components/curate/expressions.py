"""Expressions that landmarks can tell, each as a strength by frame: 1 and more is shown.

The limits told people apart best that were rendered with one expression each (performer, bank for training, 128 px, 22
people for the smile and 10 for the brows, half of the pictures with an open jaw, small turns of the head). Real faces
show more in passing while they talk: no limit was chosen on them. `python -m tests.benchmarks.expressions` says how
well other performers' expressions are told.
"""

import numpy as np
from numpy.typing import NDArray

from components.curate.faces import FEATURES

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

Strengths = dict[str, NDArray[np.float64]]


def strengths(features: NDArray[np.float32], resting: NDArray[np.float32]) -> Strengths:
    """How strongly each frame shows an expression, float64 [T] by its name; NaN where the face is not seen.

    Args:
        features: face features [T, F] by faces.FEATURES.
        resting: the person's usual features [F].

    Returns:
        smile (corners of the mouth apart and up), surprise (brows up), sad (inner ends of the brows up), frown (brows
        down) and wide_eyes.
    """

    def change(name: str) -> NDArray[np.float64]:
        column = FEATURES.index(name)
        return features[:, column].astype(np.float64) - float(resting[column])

    inner, outer = change("brow_inner"), change("brow_outer")
    usual_eyes = max(float(resting[FEATURES.index("eyes")]), 1e-6)
    found = {
        "smile": (change("smile") - _JAW_PULL * np.maximum(change("gap"), 0.0)) / _SMILE,
        "surprise": outer / _BROWS_UP,
        "sad": np.minimum(inner - outer, inner) / _BROWS_SLANT,
        "frown": -outer / _BROWS_DOWN,
        "wide_eyes": change("eyes") / usual_eyes / _WIDE,
    }
    turned = np.abs(change("yaw")) > _TURNED_RAD
    return {name: np.where(turned, 0.0, values) for name, values in found.items()}
