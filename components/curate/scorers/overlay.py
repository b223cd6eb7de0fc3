"""What an editor laid over the picture: marks in a corner, and another picture inside the picture."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.scorers.base import Clip, Scorer, Scores, Watcher
from components.curate.video.reduced import Frame

_SIDE_PX, _EVERY, _WINDOW = 160, 6, 8
"""Pictures are reduced to this longer side; one in _EVERY is kept until a window of 2 s is full."""
_STILL = 4.0
"""Grey values that a pixel of a standing mark varies by at most (standard deviation)."""
_MARK_EDGE, _INSET_EDGE = 9.0, 2.5
"""Grey values from pixel to pixel that make an edge of a mark, and of an inset's frame."""
_MARK_SIDE = (0.09, 0.3)
"""Sides of a mark as shares of the picture's shorter side."""
_INSET_SIDE = (0.2, 0.62)
_LINE_PX = 7
"""Thickest outline of something else, with the two pixels that it is grown by to either side."""
_CORNER = 0.27
"""A mark's centre is at least so far from the picture's middle, across and down."""
_CLOSED, _ALONE, _MOVES, _STANDS_OUT = 0.8, 0.25, 3.0, 2.5
"""Share of an inset's outline that is seen, by how much it exceeds lines beside it, how its inside
varies at least, and that over the noise of the whole picture."""
_MARK, _INSET = 0.0, 1.0

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) as shares of the picture."""


class Overlay(Scorer):
    """Area of marks (small still shapes, alone in a corner) and of an inset (a moving picture with a still frame)."""

    name, version = "overlay", "6"
    columns = ("logo_ratio", "inset_ratio")

    def watch(self) -> Watcher:
        return _Windows()

    def score(self, clip: Clip) -> Scores:
        rows = clip.own.traces[self.name]
        span = _EVERY * _WINDOW
        rows = rows[(rows[:, 0] < clip.start + clip.frames) & (rows[:, 0] + span > clip.start)]
        size = np.array([clip.own.header.width_px, clip.own.header.height_px] * 2, np.float32)
        face = np.nanmedian(clip.rows[:, :4], axis=0)
        inset, logos = 0.0, list[float]()
        for start in np.unique(rows[:, 0]):
            boxes = rows[rows[:, 0] == start]
            marks = boxes[boxes[:, 1] == _MARK][:, 2:] * size
            off_face = [box for box in marks if not _holds(tuple(face), tuple(box))]
            shares = clip.crop.share_inside(np.array(off_face, np.float32).reshape(-1, 4))
            areas = [float(np.prod(box[2:] - box[:2])) / clip.crop.side**2 for box in off_face]
            logos.append(float(np.dot(shares, areas)))
            inset = max([inset, *(float(np.prod(box[4:] - box[2:4])) for box in boxes[boxes[:, 1] == _INSET])])
        # A mark stands for the whole clip; an inset may come and go.
        return {"logo_ratio": float(np.median(logos)) if logos else None, "inset_ratio": inset if logos else None}


class _Windows(Watcher):
    """Marks and insets of every window of frames: rows of (first frame, kind, box), of NaN where there is none."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, ...]] = []
        self._kept: list[NDArray[np.uint8]] = []
        self._first = 0

    def push(self, frame: Frame) -> None:
        if frame.number % _EVERY:
            return
        if not self._kept:
            self._first = frame.number
        picture = frame.shown.small(_SIDE_PX) if max(frame.shown.shape) > _SIDE_PX else frame.picture
        if self._kept and self._kept[0].shape != picture.shape:
            self._kept = []
        self._kept.append(picture)
        if len(self._kept) == _WINDOW:
            self._look()

    def trace(self) -> NDArray[np.float32]:
        if len(self._kept) >= _WINDOW // 2:
            self._look()
        return np.array(self._rows, np.float32).reshape(-1, 6)

    def _look(self) -> None:
        pictures = np.stack(self._kept)
        ordered, spread = np.sort(pictures, axis=0), spread_of(pictures)
        middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1].mean(axis=0).astype(np.float32)
        found = [(self._first, _MARK, *box) for box in marks(middle, spread)]
        found += [(self._first, _INSET, *box) for box in insets(pictures, spread)]
        self._rows += found or [(self._first, *[np.nan] * 5)]
        self._kept = []


def spread_of(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Standard deviation over time of the colour that varies most: [n, H, W, 3] to [H, W]."""
    count, wide = len(pictures), pictures.astype(np.int32)
    total = wide.sum(axis=0)
    # The variance times n squared: whole numbers, so that nothing cancels.
    varies = count * np.einsum("nhwc,nhwc->hwc", wide, wide) - total * total
    return np.asarray(np.sqrt(_most(varies)) / count, np.float32)


def _most(picture: NDArray[Any]) -> NDArray[Any]:
    """The largest value over the colours: [H, W, 3] to [H, W]."""
    return np.asarray(np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2]))


def _steep(pictures: NDArray[np.uint8], axis: int) -> NDArray[np.bool_]:
    """Where three in four of the pictures [n, H, W, 3] have the edge of an inset along an axis: [H, W]."""
    import cv2

    slopes = []
    for picture in pictures:
        padded = cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        before, after = (padded[:-2], padded[2:]) if axis == 0 else (padded[:, :-2], padded[:, 2:])
        twice = cv2.absdiff(before, after)  # at the picture's edges it is the change to the only neighbour
        ends = slice(None, None, len(twice) - 1) if axis == 0 else (slice(None), slice(None, None, twice.shape[1] - 1))
        twice[ends] = np.minimum(twice[ends], 127) * 2
        slopes.append(_most(twice[:, 1:-1] if axis == 0 else twice[1:-1]))
    place, share = divmod((len(slopes) - 1) / 4, 1)
    low, high = np.sort(slopes, axis=0)[int(place) : int(place) + 2].astype(np.float32)
    steep = (1 - share) * low + share * high > 2 * _INSET_EDGE
    return np.asarray(steep)


def _slope(picture: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Largest change over the colours from each pixel to the next but one, halved; same shape [H, W]."""
    change = np.abs(np.gradient(picture, axis=axis)).max(axis=2)
    return np.asarray(change, np.float32)


def marks(middle: NDArray[np.float32], spread: NDArray[np.float32]) -> list[Box]:
    """Boxes of small still shapes that stand alone in a corner.

    Args:
        middle: median picture [H, W, 3].
        spread: standard deviation over time [H, W].
    """
    import cv2

    height, width = spread.shape
    edges = (np.hypot(_slope(middle, 0), _slope(middle, 1)) > _MARK_EDGE) & (spread < _STILL)
    grown = cv2.dilate(edges.astype(np.uint8), np.ones((3, 3), np.uint8))
    outlines, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(grown), outlines, -1, 1, cv2.FILLED)
    # A mark may lie on a line, such as a shoulder, that joins it to the picture's edge: the line is thin, it is not.
    compact = cv2.morphologyEx(filled, cv2.MORPH_OPEN, np.ones((_LINE_PX, _LINE_PX), np.uint8))
    boxes: list[Box] = []
    for shapes, alone in ((grown, True), (compact, False)):
        for x, y, wide, high, area in cv2.connectedComponentsWithStats(shapes)[2][1:]:
            box = (x / width, y / height, (x + wide) / width, (y + high) / height)
            open_sides = (x <= 0) + (y <= 0) + (x + wide >= width) + (y + high >= height)
            if (
                _is_mark(box, min(width, height) / np.array([width, height]))
                and area > (0.25 if alone else 0.5) * wide * high
                and open_sides <= (0 if alone else 1)
                and _slope_ring(edges, x, y, wide, high) < 0.3
                and not any(_holds(other, box) for other in boxes)
            ):
                boxes.append(box)
    return boxes


def _is_mark(box: Box, unit: NDArray[np.float64]) -> bool:
    """Whether a box has the size and the place of a mark; `unit` is the picture's shorter side as a share of each."""
    sides = np.array([box[2] - box[0], box[3] - box[1]]) / unit
    in_corner = min(abs(box[0] + box[2] - 1), abs(box[1] + box[3] - 1)) / 2 > _CORNER
    return bool(in_corner and _MARK_SIDE[0] <= sides.min() and sides.max() <= min(_MARK_SIDE[1], 3 * sides.min()))


def _holds(box: Box, other: Box) -> bool:
    x, y = (other[0] + other[2]) / 2, (other[1] + other[3]) / 2
    return box[0] < x < box[2] and box[1] < y < box[3]


def _slope_ring(edges: NDArray[np.bool_], x: int, y: int, wide: int, high: int) -> float:
    """Share of edges in the ring of 4 pixels around a box: a mark stands alone, a shelf of books does not."""
    outer = edges[max(y - 4, 0) : y + high + 4, max(x - 4, 0) : x + wide + 4]
    inner = edges[y : y + high, x : x + wide]
    return float((outer.sum() - inner.sum()) / max(outer.size - inner.size, 1))


def _alone(lines: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """How much fuller a line is than those 4 pixels beside it: a frame stands out, texture does not."""
    beside = np.maximum(np.roll(lines, 4, axis=axis), np.roll(lines, -4, axis=axis))
    return lines - beside


def insets(pictures: NDArray[np.uint8], spread: NDArray[np.float32]) -> list[Box]:
    """The box of a moving picture in a still frame in one of the corners, if there is any.

    Args:
        pictures: some pictures [n, H, W, 3].
        spread: standard deviation over time [H, W].
    """
    upright, level = _steep(pictures, 1), _steep(pictures, 0)
    height, width = spread.shape
    moves = max(_MOVES, _STANDS_OUT * float(np.median(spread)))
    tall = slice(*(round(share * height) for share in _INSET_SIDE))
    wide = slice(*(round(share * width) for share in _INSET_SIDE))
    best: tuple[float, Box] = (_CLOSED, (0.0, 0.0, 0.0, 0.0))
    for bottom in (False, True):
        for right in (False, True):
            turn = (slice(None, None, -1 if bottom else 1), slice(None, None, -1 if right else 1))
            side = np.cumsum(upright[turn], axis=0) / np.arange(1, height + 1)[:, None]
            edge = np.cumsum(level[turn], axis=1) / np.arange(1, width + 1)[None, :]
            alone = np.minimum(_alone(side, 1), _alone(edge, 0)) > _ALONE
            closed = np.where(alone, np.minimum(side, edge), 0.0)[tall, wide]
            y, x = np.unravel_index(int(closed.argmax()), closed.shape)
            y, x = int(y) + tall.start, int(x) + wide.start
            if closed.max() > best[0] and np.percentile(spread[turn][:y, :x], 95) > moves:
                x0, y0 = (width - x if right else 0), (height - y if bottom else 0)
                best = (float(closed.max()), (x0 / width, y0 / height, (x0 + x) / width, (y0 + y) / height))
    return [best[1]] if best[1][2] else []
