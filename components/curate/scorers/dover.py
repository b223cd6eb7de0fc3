"""How good a clip looks, by DOVER (Wu et al., ICCV 2023, MIT): a plug-in whose network the user gives as an ONNX file.

The network judges the square crop as it is trained on: below 224 px it sees an enlarged picture and says little.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from components.curate.config import ScorerConfig
from components.curate.scorers.base import Clip, Scorer, Scores, given_file, wrong_file
from components.runtime.packaged_weights import onnx_session
from lpm_model.digests import file_digest

_SIDE_PX, _CELLS = 224, 7
_FRAMES, _EVERY = 32, 2
_CLIPS = 3
"""Spans of 32 frames whose details are looked at, unless the network was exported for another number."""
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_SPREAD = np.array([58.395, 57.12, 57.375], np.float32)
_TECHNICAL, _AESTHETIC = (0.1107, 0.07355, 0.6104), (-0.08285, 0.03774, 0.3896)
"""Usual value, spread and weight of both scores: its authors' fusion."""
_INPUTS = ("aes_view", "tech_view")


class Dover(Scorer):
    """Technical and aesthetic score in no unit, and both fused to 0 bad .. 1 good."""

    name, version, licence = "dover", "1", "MIT"
    columns = ("dover", "dover_technical", "dover_aesthetic")

    def __init__(self, session: Any) -> None:
        self._session = session
        shape = next(one.shape for one in session.get_inputs() if one.name == "tech_view")
        self._clips = shape[0] if isinstance(shape[0], int) else _CLIPS

    @classmethod
    def make(cls, config: ScorerConfig) -> Self:
        try:
            session = onnx_session(_network(config))
        except Exception as error:  # the runtime's errors have no kind in common
            raise wrong_file("dover", config.dover, f"is no ONNX file ({error})") from error
        if {one.name for one in session.get_inputs()} != set(_INPUTS) or len(session.get_outputs()) != 2:
            raise wrong_file("dover", config.dover, "is not DOVER")
        return cls(session)

    @classmethod
    def weights_digest(cls, config: ScorerConfig) -> str | None:
        return file_digest(_network(config))

    def score(self, clip: Clip) -> Scores:
        views = {"aes_view": whole_view(clip.pictures), "tech_view": detail_view(clip.pictures, self._clips)}
        aesthetic, technical = (float(np.mean(values)) for values in self._session.run(None, views))
        fused = sum(
            (value - usual) / spread * weight
            for value, (usual, spread, weight) in ((technical, _TECHNICAL), (aesthetic, _AESTHETIC))
        )
        return {"dover": float(1 / (1 + np.exp(-fused))), "dover_technical": technical, "dover_aesthetic": aesthetic}


def _network(config: ScorerConfig) -> Path:
    return given_file("dover", config.dover)


def whole_view(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """32 frames over the clip, each as a whole: float32 [1, 3, 32, 224, 224] of pictures [T, S, S, 3]."""
    import cv2

    step = len(pictures) // _FRAMES
    at = np.minimum(np.arange(_FRAMES) * step + max(step - _EVERY, 0) // 2, len(pictures) - 1)
    method = cv2.INTER_AREA if pictures.shape[1] > _SIDE_PX else cv2.INTER_LINEAR
    small = np.stack([cv2.resize(picture, (_SIDE_PX, _SIDE_PX), interpolation=method) for picture in pictures[at]])
    return _normalised(small)[None]


def detail_view(pictures: NDArray[np.uint8], clips: int) -> NDArray[np.float32]:
    """The middle 32 x 32 pixels of each of 7 x 7 cells, in some spans: float32 [clips, 3, 32, 224, 224]."""
    import cv2

    side, cell = pictures.shape[1], _SIDE_PX // _CELLS
    starts = len(pictures) // clips * np.arange(clips) + max(len(pictures) // clips - _FRAMES * _EVERY, 0) // 2
    corners = [side // _CELLS * i + max(side // _CELLS - cell, 0) // 2 for i in range(_CELLS)]
    kept = np.concatenate([np.arange(corner, corner + cell) for corner in corners])
    views = []
    for start in starts:
        chosen = pictures[(start + np.arange(_FRAMES) * _EVERY) % len(pictures)]
        if side < _SIDE_PX:
            size = (_SIDE_PX, _SIDE_PX)
            views.append(np.stack([cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) for one in chosen]))
        else:
            views.append(chosen[:, kept][:, :, kept])
    return np.stack([_normalised(view) for view in views])


def _normalised(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures [T, H, W, 3] as the network wants them, float32 [3, T, H, W]."""
    return np.ascontiguousarray(((pictures - _MEAN) / _SPREAD).transpose(3, 0, 1, 2), np.float32)
