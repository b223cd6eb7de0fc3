"""Cuts between shots (PySceneDetect's adaptive detector) and dissolves, found while frames are streamed."""

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.video.reduced import StreamedFrame
from lpm_model.config import VIDEO_FPS

_MIN_SHOT_FRAMES = 12
_CUT_CHANGE = 12.0
"""Change of hue, saturation and value at a cut: less than the detector's own 15, for cuts between people in one
studio, and above the 8 by which a keyframe can change a frame."""
_SIDE_PX = 24
_REACH = 5
"""Frames before and after the current one between which a dissolve is searched."""
_DISSOLVE_CHANGE = 5.0
"""Minimum mean change of grey values over twice the reach in a dissolve."""
_DISSOLVE_BEND = 0.24
"""Largest deviation, as a fraction of that change, of the frames between from a linear blend of the two."""
_DISSOLVE_FRAMES = 4


class ShotFinder:
    """Finds shots: push frames in order, then call `shots`."""

    def __init__(self, threshold: float) -> None:
        from scenedetect.detectors import AdaptiveDetector

        self._detector: Any = AdaptiveDetector(
            adaptive_threshold=threshold, min_scene_len=_MIN_SHOT_FRAMES, min_content_val=_CUT_CHANGE
        )
        self._cuts: list[int] = []
        self._frames = 0
        self._recent: deque[NDArray[np.float32]] = deque(maxlen=2 * _REACH + 1)
        self._mixed: list[int] = []

    def push(self, frame: StreamedFrame) -> None:
        """Process the next frame."""
        import cv2
        from scenedetect import FrameTimecode

        code = FrameTimecode(self._frames, float(VIDEO_FPS))
        found = self._detector.process_frame(code, cv2.cvtColor(frame.small, cv2.COLOR_RGB2BGR))
        self._cuts += [cut.frame_num for cut in found]
        tiny = cv2.resize(frame.grey, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
        self._recent.append(tiny.astype(np.float32))
        if len(self._recent) == 2 * _REACH + 1 and self._is_mixture():
            self._mixed.append(self._frames - _REACH)
        self._frames += 1

    def _is_mixture(self) -> bool:
        """Return whether the recent frames blend linearly from the oldest to the newest, which differ.

        In a dissolve or a fade every pixel does; where something moves, pixels jump.
        """
        first, last = self._recent[0], self._recent[-1]
        change = float(np.abs(last - first).mean())
        if change <= _DISSOLVE_CHANGE:
            return False
        bends = []
        for at in (_REACH // 2, _REACH, 2 * _REACH - _REACH // 2):
            weight = at / (2 * _REACH)
            bends.append(float(np.abs(self._recent[at] - (1 - weight) * first - weight * last).mean()))
        return max(bends) < _DISSOLVE_BEND * change

    def transitions(self) -> list[tuple[int, int, str]]:
        """Return (first frame, frame after the last, "cut" or "dissolve") between the shots; a cut has no frames."""
        spans: list[list[int]] = []
        for frame in self._mixed:
            if spans and frame - spans[-1][1] <= 2:
                spans[-1][1] = frame + 1
            else:
                spans.append([frame, frame + 1])
        dissolves = [
            (max(start - _REACH, 0), min(stop + _REACH, self._frames), "dissolve")
            for start, stop in spans
            if stop - start >= _DISSOLVE_FRAMES
        ]
        cuts = sorted({cut for cut in self._cuts if not any(a <= cut <= b for a, b, _ in dissolves)})
        return sorted([*dissolves, *((cut, cut, "cut") for cut in cuts)])

    def shots(self) -> list[tuple[int, int]]:
        """Return (first frame, frame after the last) of every shot."""
        between = self.transitions()
        starts = [0, *(stop for _, stop, _ in between)]
        stops = [*(start for start, _, _ in between), self._frames]
        return [(a, b) for a, b in zip(starts, stops, strict=True) if b > a]
