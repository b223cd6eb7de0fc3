"""What an editor laid over the picture: marks in a corner, and another picture inside the picture."""

import numpy as np
from numpy.typing import NDArray

from components.curate.scorers.base import Clip, Scorer, Scores

_STILL = 4.0
"""Grey values that a pixel of a standing mark varies by at most (standard deviation)."""
_MARK_EDGE, _INSET_EDGE = 9.0, 2.5
"""Grey values from pixel to pixel that make an edge of a mark, and of an inset's frame."""
_MARK_SIDE = (0.05, 0.34)
"""Sides of a mark as shares of the picture."""
_INSET_SIDE = (0.16, 0.62)


class Overlay(Scorer):
    """Area of marks (small still shapes, alone in a corner) and of an inset (a moving picture with a still frame)."""

    name, version = "overlay", "1"
    columns = ("logo_ratio", "inset_ratio")

    def score(self, clip: Clip) -> Scores:
        pictures = clip.sampled.astype(np.float32)
        spread = pictures.std(axis=0).max(axis=2)
        return {
            "logo_ratio": _marks(np.median(pictures, axis=0), spread, clip.face_box),
            "inset_ratio": _inset(pictures, spread),
        }


def _slope(picture: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Largest change over the colours from each pixel to the next but one, halved; same shape [H, W]."""
    change = np.abs(np.gradient(picture, axis=axis)).max(axis=2)
    return np.asarray(change, np.float32)


def _marks(middle: NDArray[np.float32], spread: NDArray[np.float32], face: NDArray[np.float32]) -> float:
    """Share of the picture under marks.

    Args:
        middle: median picture [s, s, 3].
        spread: standard deviation over time [s, s].
        face: face box in shares of the side.
    """
    import cv2

    size = len(middle)
    edges = (np.hypot(_slope(middle, 0), _slope(middle, 1)) > _MARK_EDGE) & (spread < _STILL)
    reach = max(round(0.02 * size), 1)
    grown = cv2.dilate(edges.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    count, _, boxes, _ = cv2.connectedComponentsWithStats(grown)
    total = 0
    for x, y, wide, high, _ in boxes[1:count]:
        sides = np.array([wide, high]) / size
        corner = all(abs((at + side / 2) / size - 0.5) > 0.2 for at, side in ((x, wide), (y, high)))
        centre = ((x + wide / 2) / size, (y + high / 2) / size)
        on_face = face[0] < centre[0] < face[2] and face[1] < centre[1] < face[3]
        open_edge = x <= 0 or y <= 0 or x + wide >= size or y + high >= size
        if _MARK_SIDE[0] <= sides.min() and sides.max() <= _MARK_SIDE[1] and corner and not on_face and not open_edge:
            total += int(wide * high)
    return total / size**2


def _inset(pictures: NDArray[np.float32], spread: NDArray[np.float32]) -> float:
    """Share of the picture under an inset in one of the corners: a frame that stays, around pictures that move."""
    upright = np.percentile([_slope(picture, 1) for picture in pictures[::2]], 25, axis=0) > _INSET_EDGE
    level = np.percentile([_slope(picture, 0) for picture in pictures[::2]], 25, axis=0) > _INSET_EDGE
    size = len(spread)
    low, high = (round(share * size) for share in _INSET_SIDE)
    lengths = np.arange(1, size + 1)
    best = 0.0
    for rows in (slice(None), slice(None, None, -1)):
        for columns in (slice(None), slice(None, None, -1)):
            right = np.cumsum(upright[rows, columns], axis=0) / lengths[:, None]
            below = np.cumsum(level[rows, columns], axis=1) / lengths[None, :]
            closed = np.minimum(right, below)[low:high, low:high]
            y, x = np.unravel_index(int(closed.argmax()), closed.shape)
            inside = spread[rows, columns][: y + low, : x + low]
            if closed[y, x] > 0.7 and np.percentile(inside, 75) > _STILL:
                best = max(best, float(inside.size) / size**2)
    return best
