"""Cuts between shots, found while the frames stream by (PySceneDetect's adaptive detector)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import VIDEO_FPS

_SIDE_PX = 96
_MIN_SHOT_FRAMES = 12


class ShotFinder:
    """Feed frames in order, then ask for the shots."""

    def __init__(self, threshold: float) -> None:
        from scenedetect.detectors import AdaptiveDetector

        self._detector: Any = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=_MIN_SHOT_FRAMES)
        self._cuts: list[int] = []
        self._frames = 0

    def push(self, picture: NDArray[np.uint8]) -> None:
        """Take the next RGB picture [H, W, 3]."""
        import cv2
        from scenedetect import FrameTimecode

        scale = _SIDE_PX / max(picture.shape[:2])
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        code = FrameTimecode(self._frames, float(VIDEO_FPS))
        found = self._detector.process_frame(code, cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        self._cuts += [cut.frame_num for cut in found]
        self._frames += 1

    def shots(self) -> list[tuple[int, int]]:
        """(first frame, frame after the last) of every shot."""
        edges = [0, *sorted(set(self._cuts)), self._frames]
        return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]
