"""Camera motion, measured in the upper corners of the frame, where people seldom are."""

import functools

import numpy as np
from numpy.typing import NDArray

from components.curate.scorers.base import ClipView, Scorer, Scores, StreamingScorer
from components.curate.video.reduced import SMALL_PX, StreamedFrame

_EVERY = 2
_MIN_TEXTURE = 3.0
"""Standard deviation of grey values below which a corner has too little texture to track."""
_MIN_RESPONSE = 0.15
_AGREE_PX = 0.8


class Camera(Scorer):
    """Pan speed and jitter of the camera by phase correlation of the two upper corners; None without texture."""

    name, version = "camera", "1"
    columns = ("camera_motion_ratio", "shake_ratio")

    def start_stream(self) -> StreamingScorer:
        return _CornerMotion()

    def score(self, clip: ClipView) -> Scores:
        steps = clip.trace(self.name)[1:, 1:] / SMALL_PX
        known = steps[~np.isnan(steps[:, 0])]
        if len(known) < 4:
            return {"camera_motion_ratio": None, "shake_ratio": None}
        # A pan is steady; a shaking hand reverses direction from one frame to the next.
        reversals = np.diff(steps, axis=0) / 2
        reversals = reversals[~np.isnan(reversals[:, 0])]
        jitter = float(np.sqrt((reversals**2).sum(axis=1).mean())) if len(reversals) else 0.0
        return {"camera_motion_ratio": float(np.hypot(*known.mean(axis=0))) / _EVERY, "shake_ratio": jitter}


class _CornerMotion(StreamingScorer):
    """Rows (frame, dx, dy) of motion between every second frame; NaN where corners lack texture or disagree."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float, float]] = []
        self._last: list[NDArray[np.float32]] | None = None

    def push(self, frame: StreamedFrame) -> None:
        if frame.number % _EVERY:
            return
        height, width = frame.grey.shape
        tall, wide = height // 2, width * 2 // 5
        corners = [frame.grey[:tall, :wide].astype(np.float32), frame.grey[:tall, width - wide :].astype(np.float32)]
        if self._last is None or self._last[0].shape != corners[0].shape:
            self._rows.append((frame.number, np.nan, np.nan))
        else:
            self._rows.append((frame.number, *_common_shift(self._last, corners)))
        self._last = corners

    def trace(self) -> NDArray[np.float32]:
        return np.array(self._rows, np.float32).reshape(-1, 3)


def _common_shift(before: list[NDArray[np.float32]], after: list[NDArray[np.float32]]) -> tuple[float, float]:
    """Return the common shift (x, y) of both corners in pixels, NaN if it cannot be measured."""
    import cv2

    shifts = []
    for a, b in zip(before, after, strict=True):
        if float(b.std()) < _MIN_TEXTURE:
            return float("nan"), float("nan")
        (x, y), response = cv2.phaseCorrelate(a, b, _window(a.shape))
        if response < _MIN_RESPONSE:
            return float("nan"), float("nan")
        shifts.append((x, y))
    (x0, y0), (x1, y1) = shifts
    if np.hypot(x0 - x1, y0 - y1) > _AGREE_PX:
        return float("nan"), float("nan")
    return (x0 + x1) / 2, (y0 + y1) / 2


@functools.cache
def _window(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.outer(np.hanning(shape[0]), np.hanning(shape[1])).astype(np.float32)
