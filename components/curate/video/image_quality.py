"""Quality: what several scorers measure with, and the one decision by thresholds."""

import numpy as np
from numpy.typing import NDArray

from components.curate.video.frame import Picture

_FROZEN_CHANGE = 0.02
_BLACK = 18
_FACE_PX = 128


def sharpness(picture: Picture, box: NDArray[np.float32]) -> float:
    """Variance of the Laplacian of the face, scaled to 128 x 128, grey values 0..1.

    Args:
        picture: what shows it.
        box: face box (x0, y0, x1, y1) in the source's pixels.
    """
    import cv2

    width, height = picture.size
    x0, y0 = max(int(box[0]), 0), max(int(box[1]), 0)
    x1, y1 = min(int(box[2]) + 1, width), min(int(box[3]) + 1, height)
    if x1 - x0 < 4 or y1 - y0 < 4:
        return 0.0
    face = picture.grey(x0, y0, x1 - x0, y1 - y0, _FACE_PX)
    _, spread = cv2.meanStdDev(cv2.Laplacian(face, cv2.CV_16S))
    return float(spread[0, 0] / 255) ** 2


def letterbox_ratio(clip: NDArray[np.uint8]) -> float:
    """Share of rows and columns at the edges that stay black over the clip (uint8 [T, H, W, 3])."""
    brightest = clip[:: max(len(clip) // 8, 1)].max(axis=(0, 3))
    rows, columns = inside_bars(brightest)
    inside = (rows.stop - rows.start) + (columns.stop - columns.start)
    return float(1 - inside / (brightest.shape[0] + brightest.shape[1]))


def inside_bars(grey: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Rows and columns of a picture [H, W] between the black ones at its edges; none where all of it is black."""
    found = []
    for lines in (grey.max(axis=1), grey.max(axis=0)):
        bright = np.flatnonzero(lines > _BLACK)
        found.append(slice(int(bright[0]), int(bright[-1]) + 1) if len(bright) else slice(0, 0))
    return found[0], found[1]


def longest_frozen(change: NDArray[np.float32]) -> int:
    """Most frames in a row without a visible change; frames shown again (NaN) follow the ones around them."""
    longest = run = 0
    for value in change:
        if value >= _FROZEN_CHANGE:
            run = 0
        else:
            run += 1
        longest = max(longest, run)
    return longest


def static_ratio(change: NDArray[np.float32]) -> float:
    """Share of the pictures that don't differ visibly from the one before; frames shown again (NaN) don't count."""
    known = change[~np.isnan(change)]
    return float((known < _FROZEN_CHANGE).mean()) if len(known) else 1.0


def angles_deg(yaw: NDArray[np.float32], pitch: NDArray[np.float32]) -> tuple[float, float]:
    """(95th percentile of the absolute head turn, spread of turn and nod together), degrees."""
    turn = float(np.nanpercentile(np.abs(yaw), 95))
    spread = float(np.hypot(np.nanstd(yaw), np.nanstd(pitch)))
    return float(np.degrees(turn)), float(np.degrees(spread))
