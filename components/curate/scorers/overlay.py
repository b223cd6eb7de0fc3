"""Editor overlays: logos in a corner, and picture-in-picture insets."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.scorers.base import ClipView, Scorer, Scores, StreamingScorer
from components.curate.video.reduced import StreamedFrame

_SIDE_PX, _EVERY, _WINDOW = 160, 6, 8
"""Longer side of the reduced frames; every _EVERY-th one is buffered until a window of 2 s is full."""
_STILL = 4.0
"""Largest standard deviation over time of a pixel of a static logo, in grey values."""
_LOGO_EDGE, _INSET_EDGE = 9.0, 2.5
"""Change from pixel to pixel, in grey values, that counts as an edge of a logo, and of an inset's border."""
_LOGO_SIDE = (0.09, 0.3)
"""Sides of a logo as fractions of the frame's shorter side."""
_INSET_SIDE = (0.2, 0.62)
_LINE_PX = 7
"""Thickest line that is not part of a logo, including the dilation by two pixels."""
_CORNER = 0.27
"""Smallest distance of a logo's centre from the frame's centre, horizontally and vertically."""
_MIN_BORDER, _MIN_BORDER_MARGIN, _MIN_SPREAD, _MIN_SPREAD_RATIO = 0.8, 0.25, 3.0, 2.5
"""Minima for an inset: visible fraction of its border, margin over parallel lines, standard deviation inside, and
the ratio of that to the noise of the whole frame."""
_LOGO, _INSET = 0.0, 1.0

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) as fractions of the frame."""


class Overlay(Scorer):
    """Area of logos (small static shapes, isolated in a corner) and of an inset (moving content in a static border)."""

    name, version = "overlay", "6"
    columns = ("logo_ratio", "inset_ratio")

    def start_stream(self) -> StreamingScorer:
        return _OverlayDetector()

    def score(self, clip: ClipView) -> Scores:
        rows = clip.analysis.traces[self.name]
        span = _EVERY * _WINDOW
        rows = rows[(rows[:, 0] < clip.start + clip.frames) & (rows[:, 0] + span > clip.start)]
        size = np.array([clip.analysis.header.width_px, clip.analysis.header.height_px] * 2, np.float32)
        face = np.nanmedian(clip.features[:, :4], axis=0)
        inset, logos = 0.0, list[float]()
        for start in np.unique(rows[:, 0]):
            boxes = rows[rows[:, 0] == start]
            found = boxes[boxes[:, 1] == _LOGO][:, 2:] * size
            off_face = [box for box in found if not _contains_centre(tuple(face), tuple(box))]
            fractions = clip.crop.fraction_inside(np.array(off_face, np.float32).reshape(-1, 4))
            areas = [float(np.prod(box[2:] - box[:2])) / clip.crop.side**2 for box in off_face]
            logos.append(float(np.dot(fractions, areas)))
            inset = max([inset, *(float(np.prod(box[4:] - box[2:4])) for box in boxes[boxes[:, 1] == _INSET])])
        # A logo stays for the whole clip; an inset may come and go.
        return {"logo_ratio": float(np.median(logos)) if logos else None, "inset_ratio": inset if logos else None}


class _OverlayDetector(StreamingScorer):
    """Logos and insets of every window of frames: rows (first frame, kind, box), NaN without any."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, ...]] = []
        self._buffer: list[NDArray[np.uint8]] = []
        self._first = 0

    def push(self, frame: StreamedFrame) -> None:
        if frame.number % _EVERY:
            return
        if not self._buffer:
            self._first = frame.number
        image = frame.decoded.small(_SIDE_PX) if max(frame.decoded.shape) > _SIDE_PX else frame.rgb
        if self._buffer and self._buffer[0].shape != image.shape:
            self._buffer = []
        self._buffer.append(image)
        if len(self._buffer) == _WINDOW:
            self._detect()

    def trace(self) -> NDArray[np.float32]:
        if len(self._buffer) >= _WINDOW // 2:
            self._detect()
        return np.array(self._rows, np.float32).reshape(-1, 6)

    def _detect(self) -> None:
        frames = np.stack(self._buffer)
        ordered, spread = np.sort(frames, axis=0), temporal_spread(frames)
        middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1].mean(axis=0).astype(np.float32)
        found = [(self._first, _LOGO, *box) for box in logos(middle, spread)]
        found += [(self._first, _INSET, *box) for box in insets(frames, spread)]
        self._rows += found or [(self._first, *[np.nan] * 5)]
        self._buffer = []


def temporal_spread(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the standard deviation over time of the channel that varies most: [n, H, W, 3] to float32 [H, W]."""
    count, wide = len(frames), frames.astype(np.int32)
    total = wide.sum(axis=0)
    # n squared times the variance, in integers, which avoids cancellation.
    variance = count * np.einsum("nhwc,nhwc->hwc", wide, wide) - total * total
    return np.asarray(np.sqrt(_channel_max(variance)) / count, np.float32)


def _channel_max(image: NDArray[Any]) -> NDArray[Any]:
    """Return the largest value over the channels: [H, W, 3] to [H, W]."""
    return np.asarray(np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2]))


def inset_edges(frames: NDArray[np.uint8], axis: int) -> NDArray[np.bool_]:
    """Return where three in four of the frames [n, H, W, 3] have an inset's edge along an axis: bool [H, W]."""
    import cv2

    slopes = []
    for frame in frames:
        padded = cv2.copyMakeBorder(frame, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        before, after = (padded[:-2], padded[2:]) if axis == 0 else (padded[:, :-2], padded[:, 2:])
        twice = cv2.absdiff(before, after)  # at the border it is the change to the only neighbour
        ends = slice(None, None, len(twice) - 1) if axis == 0 else (slice(None), slice(None, None, twice.shape[1] - 1))
        twice[ends] = np.minimum(twice[ends], 127) * 2
        slopes.append(_channel_max(twice[:, 1:-1] if axis == 0 else twice[1:-1]))
    rank, weight = divmod((len(slopes) - 1) / 4, 1)
    low, high = np.sort(slopes, axis=0)[int(rank) : int(rank) + 2].astype(np.float32)
    steep = (1 - weight) * low + weight * high > 2 * _INSET_EDGE
    return np.asarray(steep)


def _slope(image: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the largest central difference over the channels along an axis: [H, W, 3] to [H, W]."""
    change = np.abs(np.gradient(image, axis=axis)).max(axis=2)
    return np.asarray(change, np.float32)


def logos(middle: NDArray[np.float32], spread: NDArray[np.float32]) -> list[Box]:
    """Return boxes of small static shapes that are isolated in a corner.

    Args:
        middle: median frame [H, W, 3].
        spread: standard deviation over time [H, W].
    """
    import cv2

    height, width = spread.shape
    edges = (np.hypot(_slope(middle, 0), _slope(middle, 1)) > _LOGO_EDGE) & (spread < _STILL)
    grown = cv2.dilate(edges.astype(np.uint8), np.ones((3, 3), np.uint8))
    outlines, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(grown), outlines, -1, 1, cv2.FILLED)
    # A logo may touch a line, such as a shoulder, that joins it to the border: the opening removes the thin line.
    compact = cv2.morphologyEx(filled, cv2.MORPH_OPEN, np.ones((_LINE_PX, _LINE_PX), np.uint8))
    boxes: list[Box] = []
    for shapes, alone in ((grown, True), (compact, False)):
        for x, y, wide, high, area in cv2.connectedComponentsWithStats(shapes)[2][1:]:
            box = (x / width, y / height, (x + wide) / width, (y + high) / height)
            open_sides = (x <= 0) + (y <= 0) + (x + wide >= width) + (y + high >= height)
            if (
                _is_logo(box, min(width, height) / np.array([width, height]))
                and area > (0.25 if alone else 0.5) * wide * high
                and open_sides <= (0 if alone else 1)
                and _edges_around(edges, x, y, wide, high) < 0.3
                and not any(_contains_centre(other, box) for other in boxes)
            ):
                boxes.append(box)
    return boxes


def _is_logo(box: Box, unit: NDArray[np.float64]) -> bool:
    """Return whether a box has a logo's size and place; `unit` is the shorter side as a fraction of (width, height)."""
    sides = np.array([box[2] - box[0], box[3] - box[1]]) / unit
    in_corner = min(abs(box[0] + box[2] - 1), abs(box[1] + box[3] - 1)) / 2 > _CORNER
    return bool(in_corner and _LOGO_SIDE[0] <= sides.min() and sides.max() <= min(_LOGO_SIDE[1], 3 * sides.min()))


def _contains_centre(box: Box, other: Box) -> bool:
    x, y = (other[0] + other[2]) / 2, (other[1] + other[3]) / 2
    return box[0] < x < box[2] and box[1] < y < box[3]


def _edges_around(edges: NDArray[np.bool_], x: int, y: int, wide: int, high: int) -> float:
    """Return the edge density in the ring of 4 pixels around a box: a logo is isolated, a shelf of books is not."""
    outer = edges[max(y - 4, 0) : y + high + 4, max(x - 4, 0) : x + wide + 4]
    inner = edges[y : y + high, x : x + wide]
    return float((outer.sum() - inner.sum()) / max(outer.size - inner.size, 1))


def _margin_over_parallels(lines: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return by how much a line exceeds its parallels 4 pixels away: large for a border, small for texture."""
    parallels = np.maximum(np.roll(lines, 4, axis=axis), np.roll(lines, -4, axis=axis))
    return lines - parallels


def insets(frames: NDArray[np.uint8], spread: NDArray[np.float32]) -> list[Box]:
    """Return the box of moving content in a static border in one of the corners, if there is any.

    Args:
        frames: frames of a window [n, H, W, 3].
        spread: standard deviation over time [H, W].
    """
    vertical, horizontal = inset_edges(frames, 1), inset_edges(frames, 0)
    height, width = spread.shape
    min_spread = max(_MIN_SPREAD, _MIN_SPREAD_RATIO * float(np.median(spread)))
    tall = slice(*(round(fraction * height) for fraction in _INSET_SIDE))
    wide = slice(*(round(fraction * width) for fraction in _INSET_SIDE))
    best: tuple[float, Box] = (_MIN_BORDER, (0.0, 0.0, 0.0, 0.0))
    for bottom in (False, True):
        for right in (False, True):
            flip = (slice(None, None, -1 if bottom else 1), slice(None, None, -1 if right else 1))
            side = np.cumsum(vertical[flip], axis=0) / np.arange(1, height + 1)[:, None]
            edge = np.cumsum(horizontal[flip], axis=1) / np.arange(1, width + 1)[None, :]
            margin = np.minimum(_margin_over_parallels(side, 1), _margin_over_parallels(edge, 0))
            border = np.where(margin > _MIN_BORDER_MARGIN, np.minimum(side, edge), 0.0)[tall, wide]
            y, x = np.unravel_index(int(border.argmax()), border.shape)
            y, x = int(y) + tall.start, int(x) + wide.start
            if border.max() > best[0] and np.percentile(spread[flip][:y, :x], 95) > min_spread:
                x0, y0 = (width - x if right else 0), (height - y if bottom else 0)
                best = (float(border.max()), (x0 / width, y0 / height, (x0 + x) / width, (y0 + y) / height))
    return [best[1]] if best[1][2] else []
