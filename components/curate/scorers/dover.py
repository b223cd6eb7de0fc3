"""Video quality by DOVER (Wu et al., ICCV 2023, MIT): an optional scorer whose ONNX network the user supplies.

The network scores the square crop that the model trains on. Crops below 224 px are enlarged, which makes the score
less meaningful.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from components.curate.config import ScorerConfig
from components.curate.scorers.base import ClipView, Scorer, Scores, invalid_weights, weights_file
from components.runtime.packaged_weights import onnx_session
from lpm_model.digests import file_digest

_SIDE_PX, _CELLS = 224, 7
_FRAMES, _EVERY = 32, 2
_CLIPS = 3
"""Spans of 32 frames in the technical view, unless the network was exported with another number."""
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_SPREAD = np.array([58.395, 57.12, 57.375], np.float32)
_TECHNICAL, _AESTHETIC = (0.1107, 0.07355, 0.6104), (-0.08285, 0.03774, 0.3896)
"""Mean, spread and weight of both scores: the authors' fusion."""
_INPUTS = ("aes_view", "tech_view")


class Dover(Scorer):
    """Technical and aesthetic scores (unitless), and their fusion: 0 (bad) .. 1 (good)."""

    name, version, licence = "dover", "1", "MIT"
    columns = ("dover", "dover_technical", "dover_aesthetic")

    def __init__(self, session: Any) -> None:
        self._session = session
        shape = next(one.shape for one in session.get_inputs() if one.name == "tech_view")
        self._clips = shape[0] if isinstance(shape[0], int) else _CLIPS

    @classmethod
    def make(cls, config: ScorerConfig) -> Self:
        try:
            session = onnx_session(_weights_path(config))
        except Exception as error:  # onnxruntime's errors share no base class
            raise invalid_weights("dover", config.dover, f"is not an ONNX file ({error})") from error
        if {one.name for one in session.get_inputs()} != set(_INPUTS) or len(session.get_outputs()) != 2:
            raise invalid_weights("dover", config.dover, "is not DOVER")
        return cls(session)

    @classmethod
    def weights_digest(cls, config: ScorerConfig) -> str | None:
        return file_digest(_weights_path(config))

    def score(self, clip: ClipView) -> Scores:
        views = {"aes_view": whole_view(clip.rgb), "tech_view": detail_view(clip.rgb, self._clips)}
        aesthetic, technical = (float(np.mean(values)) for values in self._session.run(None, views))
        fused = sum(
            (value - mean) / spread * weight
            for value, (mean, spread, weight) in ((technical, _TECHNICAL), (aesthetic, _AESTHETIC))
        )
        return {"dover": float(1 / (1 + np.exp(-fused))), "dover_technical": technical, "dover_aesthetic": aesthetic}


def _weights_path(config: ScorerConfig) -> Path:
    return weights_file("dover", config.dover)


def whole_view(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return 32 whole frames over the clip, float32 [1, 3, 32, 224, 224], of RGB frames [T, S, S, 3]."""
    import cv2

    step = len(frames) // _FRAMES
    at = np.minimum(np.arange(_FRAMES) * step + max(step - _EVERY, 0) // 2, len(frames) - 1)
    method = cv2.INTER_AREA if frames.shape[1] > _SIDE_PX else cv2.INTER_LINEAR
    small = np.stack([cv2.resize(frame, (_SIDE_PX, _SIDE_PX), interpolation=method) for frame in frames[at]])
    return _normalised(small)[None]


def detail_view(frames: NDArray[np.uint8], clips: int) -> NDArray[np.float32]:
    """Return the central 32 x 32 pixels of each of 7 x 7 cells in some spans, float32 [clips, 3, 32, 224, 224]."""
    import cv2

    side, cell = frames.shape[1], _SIDE_PX // _CELLS
    starts = len(frames) // clips * np.arange(clips) + max(len(frames) // clips - _FRAMES * _EVERY, 0) // 2
    corners = [side // _CELLS * i + max(side // _CELLS - cell, 0) // 2 for i in range(_CELLS)]
    inner = np.concatenate([np.arange(corner, corner + cell) for corner in corners])
    views = []
    for start in starts:
        chosen = frames[(start + np.arange(_FRAMES) * _EVERY) % len(frames)]
        if side < _SIDE_PX:
            size = (_SIDE_PX, _SIDE_PX)
            views.append(np.stack([cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) for one in chosen]))
        else:
            views.append(chosen[:, inner][:, :, inner])
    return np.stack([_normalised(view) for view in views])


def _normalised(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Normalise frames [T, H, W, 3] to the network's input, float32 [3, T, H, W]."""
    return np.ascontiguousarray(((frames - _MEAN) / _SPREAD).transpose(3, 0, 1, 2), np.float32)
