"""Text over the image, detected by PaddleOCR's text detector (DB, arXiv 1911.08947)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.scorers.base import ClipView, Scorer, Scores, StreamingScorer
from components.curate.video.reduced import StreamedFrame
from components.runtime.packaged_weights import PackagedWeights, onnx_session

_WEIGHTS = PackagedWeights(
    package="rapidocr_onnxruntime",
    requirement="rapidocr-onnxruntime==1.4.4",
    member="models/ch_PP-OCRv4_det_infer.onnx",
    sha256="d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    alternative="skip text with curate.scorers.disabled",
)
_EVERY, _FIRST = 36, 6
"""Frames between two detections, and the first; even the shortest clip holds at least one."""
_SIDE_PX = 256
_MIN_PIXEL_PROBABILITY, _MIN_LINE_PROBABILITY = 0.3, 0.6
"""Probability of a pixel of text, and mean probability of a line of text (the detector's own defaults)."""
_UNCLIP = 1.6
"""The network marks the middle of a line: the box grows by this factor times area over perimeter."""


class Text(Scorer):
    """Fraction of the crop under text, mean over the sampled frames."""

    name, version = "text", "2"
    columns = ("text_ratio",)
    weights_sha256 = _WEIGHTS.sha256

    def __init__(self) -> None:
        self._session = onnx_session(_WEIGHTS.path())

    def start_stream(self) -> StreamingScorer:
        return _TextDetector(self._session)

    def score(self, clip: ClipView) -> Scores:
        rows = clip.trace(self.name)
        sampled = np.unique(rows[:, 0])
        if not len(sampled):
            return {"text_ratio": None}
        size = 64
        covered = np.zeros((len(sampled), size, size), bool)
        corner = np.array([clip.crop.x, clip.crop.y, clip.crop.x, clip.crop.y])
        face = np.nanmedian(clip.features[:, :4], axis=0)
        for frame, *box in rows[~np.isnan(rows[:, 1])]:
            if face[0] < (box[0] + box[2]) / 2 < face[2] and face[1] < (box[1] + box[3]) / 2 < face[3]:
                continue  # eyes, teeth and glasses are detected as text; real text is placed next to a face
            x0, y0, x1, y1 = np.clip(np.round((np.array(box) - corner) / clip.crop.side * size), 0, size).astype(int)
            covered[np.searchsorted(sampled, frame), y0:y1, x0:x1] = True
        return {"text_ratio": float(covered.mean())}


class _TextDetector(StreamingScorer):
    """Detects text on sampled frames: rows (frame, box), a NaN box on a frame without text."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._rows: list[tuple[float, ...]] = []

    def push(self, frame: StreamedFrame) -> None:
        if frame.number % _EVERY != _FIRST:
            return
        boxes = text_boxes(self._session, frame.rgb)
        self._rows += [(frame.number, *box) for box in boxes] or [(frame.number, *[np.nan] * 4)]

    def trace(self) -> NDArray[np.float32]:
        return np.array(self._rows, np.float32).reshape(-1, 5)


def _is_line(wide_px: int, high_px: int, frame_px: int) -> bool:
    """Return whether a box has the shape of a word or a line of words."""
    return high_px >= 3 and high_px <= 0.16 * frame_px and wide_px >= 1.5 * high_px


def _line_probability(box: NDArray[np.float32]) -> float:
    """Return the mean probability of the text pixels in a box [h, w]."""
    return float(box[box > _MIN_PIXEL_PROBABILITY].mean())


def text_boxes(session: Any, image: NDArray[np.uint8]) -> list[tuple[float, float, float, float]]:
    """Return upright text boxes (x0, y0, x1, y1) in pixels of an RGB image [H, W, 3]."""
    import cv2

    height, width = image.shape[:2]
    scale = _SIDE_PX / max(height, width)
    wide, high = (max(round(side * scale / 32), 1) * 32 for side in (width, height))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(image, (wide, high), interpolation=method)[:, :, ::-1]
    values = (small.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
    probability: NDArray[np.float32] = session.run(None, {"x": values})[0][0, 0]
    contours, _ = cv2.findContours(
        (probability > _MIN_PIXEL_PROBABILITY).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE
    )
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        if not _is_line(w, h, high) or _line_probability(probability[y : y + h, x : x + w]) < _MIN_LINE_PROBABILITY:
            continue
        grow = _UNCLIP * w * h / (2 * (w + h))
        box = (x - grow, y - grow, x + w + grow, y + h + grow)
        boxes.append(tuple(float(v) * side for v, side in zip(box, (width / wide, height / high) * 2, strict=True)))
    return boxes
