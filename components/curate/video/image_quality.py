"""Image measurements that several scorers share."""

import numpy as np
from numpy.typing import NDArray

from components.curate.video.frame import DecodedFrame

_FROZEN_CHANGE = 0.02
_BLACK = 18
_FACE_PX = 128


def sharpness(frame: DecodedFrame, box: NDArray[np.float32]) -> float:
    """Return the variance of the Laplacian of the face, scaled to 128 x 128, grey values 0..1.

    Args:
        frame: the frame that shows it.
        box: face box (x0, y0, x1, y1) in the source's pixels.
    """
    import cv2

    width, height = frame.size
    x0, y0 = max(int(box[0]), 0), max(int(box[1]), 0)
    x1, y1 = min(int(box[2]) + 1, width), min(int(box[3]) + 1, height)
    if x1 - x0 < 4 or y1 - y0 < 4:
        return 0.0
    face = frame.grey(x0, y0, x1 - x0, y1 - y0, _FACE_PX)
    _, spread = cv2.meanStdDev(cv2.Laplacian(face, cv2.CV_16S))
    return float(spread[0, 0] / 255) ** 2


def letterbox_ratio(clip: NDArray[np.uint8]) -> float:
    """Return the fraction of rows and columns at the edges that stay black over a clip, uint8 [T, H, W, 3]."""
    brightest = clip[:: max(len(clip) // 8, 1)].max(axis=(0, 3))
    rows, columns = inside_bars(brightest)
    inside = (rows.stop - rows.start) + (columns.stop - columns.start)
    return float(1 - inside / (brightest.shape[0] + brightest.shape[1]))


def inside_bars(grey: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Return the rows and columns of an image [H, W] between the black ones at its edges; empty if all are black."""
    found = []
    for lines in (grey.max(axis=1), grey.max(axis=0)):
        bright = np.flatnonzero(lines > _BLACK)
        found.append(slice(int(bright[0]), int(bright[-1]) + 1) if len(bright) else slice(0, 0))
    return found[0], found[1]


def longest_frozen(change: NDArray[np.float32]) -> int:
    """Return the most frames in a row without a visible change; duplicate frames (NaN) count as unchanged."""
    longest = run = 0
    for value in change:
        if value >= _FROZEN_CHANGE:
            run = 0
        else:
            run += 1
        longest = max(longest, run)
    return longest


def static_ratio(change: NDArray[np.float32]) -> float:
    """Return the fraction of frames that do not differ visibly from the one before; duplicates (NaN) do not count."""
    known = change[~np.isnan(change)]
    return float((known < _FROZEN_CHANGE).mean()) if len(known) else 1.0


def angles_deg(yaw: NDArray[np.float32], pitch: NDArray[np.float32]) -> tuple[float, float]:
    """Return (95th percentile of the absolute yaw, joint standard deviation of yaw and pitch), degrees."""
    turn = float(np.nanpercentile(np.abs(yaw), 95))
    spread = float(np.hypot(np.nanstd(yaw), np.nanstd(pitch)))
    return float(np.degrees(turn)), float(np.degrees(spread))
