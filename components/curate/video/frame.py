"""One decoded frame on its way from the decoder's planes to the RGB pictures that are asked for."""

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

_MOST_SCALERS = 16
"""Sizes for which a converter is kept."""
_PLANAR = ("yuv420p", "yuvj420p")
"""Pixel formats whose planes are cut and halved before anything is converted."""
BLOCK_PX = 8
"""The converter works on so many pixels at once."""
_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
_FULL_RANGE = 2
"""FFmpeg's colour range whose brightness fills 0..255; that of all others lies in 16..235."""
_FROM_LIMITED = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)

Rect = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the source."""


def reduction(width_px: int, height_px: int) -> int:
    """How many times a picture can be halved before its longer side falls below 640 px."""
    return max(int(np.log2(max(width_px, height_px) / 640)), 0)


def halvings_to(side: float, size_px: int) -> int:
    """How many times a side can be halved without falling below `size_px`."""
    return max(int(np.log2(max(side, 1) / size_px)), 0)


def square_halvings(x: int, y: int, side: int, size_px: int) -> int:
    """How many times the planes of a square are halved on its way to `size_px`.

    Its corners stay between pixels of the colours, which are half as many: so to halve a larger piece and to cut the
    square out of that gives the same pixels.
    """
    count = halvings_to(side, size_px)
    while count and any(place % (2 << count) for place in (x, y, side)):
        count -= 1
    return count


def part_reads(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Rect:
    """The pixels that the conversion of a part reads, in a picture of a size (width, height)."""
    right, bottom = (
        min(-(-(end + 1) // BLOCK_PX) * BLOCK_PX, most) for end, most in zip((x + width, y + height), size, strict=True)
    )
    return x // 2 * 2, y // 2 * 2, right, bottom


def square_reads(x: int, y: int, side: int, size_px: int, size: tuple[int, int]) -> tuple[Rect, int]:
    """The pixels that the reduction of a square reads, and how many times they may have been halved before."""
    count = square_halvings(x, y, side, size_px)
    return ((x, y, x + side, y + side) if count else part_reads(x, y, side, side, size)), count


class Pixels(Protocol):
    """What clips are cut from: a decoded frame, or what was kept of one."""

    def part(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """The pixels [y : y + height, x : x + width] of the source as RGB."""
        ...

    def square(self, x: int, y: int, side: int, size_px: int) -> NDArray[np.uint8]:
        """A square of at least `size_px`, reduced to means over areas: RGB [size_px, size_px, 3]."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Planes of a part of a 4:2:0 picture, halved so many times."""

    frame: Any
    """The planes."""
    left: int
    """Its first column in the source."""
    top: int
    """Its first row in the source."""
    halvings: int
    """0 = the source's own pixels."""

    def cut(self, rect: Rect, halvings: int) -> "Piece":
        """A part of it, halved so many times in all; the part's corners are multiples of 2 << halvings."""
        x, y, right, bottom = (
            (place - start) >> self.halvings for place, start in zip(rect, (self.left, self.top) * 2, strict=True)
        )
        part = _cut(self.frame, x, y, right - x, bottom - y)
        more = halvings - self.halvings
        if more:
            part = _scaled(part, part.width >> more, part.height >> more)
        return Piece(part, rect[0], rect[1], halvings)

    def rgb_part(
        self, x: int, y: int, width: int, height: int, size: tuple[int, int], scalers: "Scalers"
    ) -> NDArray[np.uint8]:
        """`Pixels.part` of a picture of a size (width, height), from a piece that was not halved."""
        left, top, right, bottom = part_reads(x, y, width, height, size)
        part = scalers.rgb(self.cut((left, top, right, bottom), 0).frame)
        return part[y - top : y - top + height, x - left : x - left + width]

    def rgb_square(self, x: int, y: int, side: int, size_px: int, scalers: "Scalers") -> NDArray[np.uint8]:
        """`Pixels.square` of one that is halved at least once, from a piece that was halved no more often."""
        small = self.cut((x, y, x + side, y + side), square_halvings(x, y, side, size_px)).frame
        return scalers.rgb(small, None if small.width == size_px else (size_px, size_px))


class Picture:
    """A decoded frame as it is shown: a phone's rotation flag applied, a change of size within a file undone.

    Only what is asked for is converted to RGB, and reduced before it is converted where that gives less to convert.
    """

    def __init__(self, frame: Any, scalers: "Scalers", halvings: int = 0, turns: int = 0) -> None:
        """A picture; `turns` is how many quarters it is turned against the clock before it is shown."""
        self._frame, self._scalers, self._halvings, self._turns = frame, scalers, halvings, turns
        self._planar = frame.format.name in _PLANAR

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the source as it is shown."""
        size = self._frame.width, self._frame.height
        return size[::-1] if self._turns % 2 else size

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of `rgb`."""
        width, height = self.size
        return height >> self._halvings, width >> self._halvings

    @property
    def whole(self) -> Piece | None:
        """All of its planes, None where they can't be cut as they are."""
        return Piece(self._frame, 0, 0, 0) if self._planar and not self._turns else None

    def planes(self, halvings: int) -> Piece:
        """All of its planes, halved at most so many times; only where `whole` is not None."""
        reduced = self._halvings
        exact = not any(side % (2 << reduced) for side in self.size)
        return Piece(self._source, 0, 0, reduced) if halvings >= reduced and exact else Piece(self._frame, 0, 0, 0)

    @functools.cached_property
    def _source(self) -> Any:
        """The frame, reduced where that is wanted and can be done plane by plane."""
        if not self._halvings or not self._planar:
            return self._frame
        return _scaled(self._frame, self._frame.width >> self._halvings, self._frame.height >> self._halvings)

    @functools.cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """All of it, reduced where that is wanted: uint8 [H, W, 3]."""
        if self._planar or not self._halvings:
            return self._turned(self._scalers.rgb(self._source))
        height, width = self.shape
        size = max(width, 1), max(height, 1)
        return np.asarray(cv2.resize(self._full, size, interpolation=cv2.INTER_AREA), np.uint8)

    @functools.cached_property
    def _full(self) -> NDArray[np.uint8]:
        """All of it as it was decoded: uint8 [H, W, 3]."""
        return self._turned(self._scalers.rgb(self._frame)) if self._halvings else self.rgb

    def within(self, side_px: int) -> NDArray[np.uint8]:
        """`rgb`, its longer side at most `side_px`: RGB [h, w, 3].

        Pixels between neighbours will do, as `rgb` of a reduced picture is less than twice as large.
        """
        scale = side_px / max(self.shape)
        if scale >= 1:
            return self.rgb
        size = max(round(self._source.width * scale), 2), max(round(self._source.height * scale), 2)
        if not self._planar:
            return np.asarray(cv2.resize(self.rgb, size[:: -1 if self._turns % 2 else 1]), np.uint8)
        return self._turned(self._scalers.rgb(_scaled(self._source, *size, cv2.INTER_LINEAR)))

    def small(self, side_px: int) -> NDArray[np.uint8]:
        """A reduced copy whose longer side is `side_px`: uint8 [h, w, 3]."""
        scale = side_px / max(self._frame.width, self._frame.height)
        size = max(round(self._frame.width * scale), 2), max(round(self._frame.height * scale), 2)
        return self._turned(self._scalers.rgb(self._source, size))

    def part(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See `Pixels`; the conversion of the other pixels is spared."""
        if "_full" in self.__dict__ or ("rgb" in self.__dict__ and not self._halvings) or self.whole is None:
            return self._full[y : y + height, x : x + width]
        return self.whole.rgb_part(x, y, width, height, self.size, self._scalers)

    def square(self, x: int, y: int, side: int, size_px: int) -> NDArray[np.uint8]:
        """See `Pixels`; planes are halved before they are converted: less work."""
        if self.whole is None or not square_halvings(x, y, side, size_px):
            return shrunk(self.part(x, y, side, side), size_px, size_px)
        return self.whole.rgb_square(x, y, side, size_px, self._scalers)

    def grey(self, x: int, y: int, width: int, height: int, side_px: int) -> NDArray[np.uint8]:
        """Grey values 0..255 of a part of the source, reduced or enlarged to [side_px, side_px]."""
        method = cv2.INTER_AREA if height > side_px else cv2.INTER_LINEAR
        if self.whole is None:
            grey = cv2.cvtColor(self.part(x, y, width, height), cv2.COLOR_RGB2GRAY)
            return np.asarray(cv2.resize(grey, (side_px, side_px), interpolation=method), np.uint8)
        piece = self.planes(halvings_to(min(width, height), side_px))
        x0, y0, x1, y1 = (place >> piece.halvings for place in (x, y, x + width, y + height))
        luma = view(piece.frame.planes[0])[y0:y1, x0:x1]
        if min(luma.shape) > side_px:
            luma = shrunk(luma, side_px, side_px, cv2.INTER_LINEAR)
        luma = np.asarray(cv2.resize(luma, (side_px, side_px), interpolation=method), np.uint8)
        full = self._frame.format.name == "yuvj420p" or self._frame.color_range == _FULL_RANGE
        return luma if full else np.asarray(cv2.LUT(luma, _FROM_LIMITED), np.uint8)

    def _turned(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.rot90(picture, self._turns) if self._turns else picture


class Scalers:
    """Converters to RGB that keep their tables, one for each size of picture; frame.to_ndarray would not."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Any] = {}
        self._size: tuple[int, int] | None = None

    def picture(self, frame: Any, reduced: bool) -> Picture:
        """A frame as it is shown, at the size of the first one."""
        turns = round(frame.rotation / 90) % 4
        self._size = self._size or (frame.width, frame.height)
        if (frame.width, frame.height) != self._size:
            frame = self._of(frame).reformat(frame, width=self._size[0], height=self._size[1], threads=1)
        if turns and frame.format.name in _PLANAR:
            frame, turns = _turned(frame, turns), 0
        return Picture(frame, self, reduction(*self._size) if reduced else 0, turns)

    def rgb(self, frame: Any, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """A whole frame, uint8 [H, W, 3], or reduced to means over areas of a size (width, height)."""
        from av.video.reformatter import Interpolation

        given: dict[str, Any] = {}
        if size is not None:
            exact = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
            given = {"width": size[0], "height": size[1], "interpolation": exact}
        picture: NDArray[np.uint8] = (
            self._of(frame, size).reformat(frame, format="rgb24", threads=1, **given).to_ndarray()
        )
        return picture

    def _of(self, frame: Any, to: tuple[int, int] | None = None) -> Any:
        import av

        sizes = (frame.width, frame.height, *(to or ()))
        if sizes not in self._kept:
            if len(self._kept) >= _MOST_SCALERS:
                self._kept.pop(next(iter(self._kept)))
            self._kept[sizes] = av.video.reformatter.VideoReformatter()
        return self._kept[sizes]


def _scaled(frame: Any, width: int, height: int, odd: int = cv2.INTER_AREA) -> Any:
    """A 4:2:0 frame at a smaller size (see `shrunk`)."""
    small = _alike(frame, max(width, 2), max(height, 2))
    for plane, target in zip(frame.planes, small.planes, strict=True):
        view(target)[:] = shrunk(view(plane), target.width, target.height, odd)
    return small


def shrunk(picture: NDArray[np.uint8], width: int, height: int, odd: int = cv2.INTER_AREA) -> NDArray[np.uint8]:
    """Means over areas of a picture [H, W] or [H, W, 3]; halved while it can be, many times as fast as odd factors.

    `odd` is OpenCV's method for what is left, which for means over areas takes longest.
    """
    while picture.shape[0] >= 2 * height and picture.shape[1] >= 2 * width:
        half = picture.shape[1] // 2, picture.shape[0] // 2
        picture = np.asarray(cv2.resize(picture, half, interpolation=cv2.INTER_AREA), np.uint8)
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(cv2.resize(picture, (width, height), interpolation=odd), np.uint8)


def _turned(frame: Any, turns: int) -> Any:
    """A 4:2:0 frame turned against the clock by so many quarters."""
    upright = _alike(frame, *(frame.height, frame.width)[:: 1 if turns % 2 else -1])
    for plane, target in zip(frame.planes, upright.planes, strict=True):
        view(target)[:] = cv2.rotate(view(plane), _TURNS[turns])
    return upright


def _cut(frame: Any, x: int, y: int, width: int, height: int) -> Any:
    """A part of a 4:2:0 frame; x and y are even."""
    piece = _alike(frame, width, height)
    for number, (plane, target) in enumerate(zip(frame.planes, piece.planes, strict=True)):
        left, top = (x, y) if not number else (x // 2, y // 2)
        view(target)[:] = view(plane)[top : top + target.height, left : left + target.width]
    return piece


def _alike(frame: Any, width: int, height: int) -> Any:
    """A new frame of another's kind."""
    return blank_frame(width, height, frame.format.name, frame.colorspace, frame.color_range)


def blank_frame(width: int, height: int, format: str, colorspace: int, color_range: int) -> Any:
    """A new frame of a pixel format and of FFmpeg's numbers for colours and their range."""
    import av

    empty = av.VideoFrame(width, height, format)
    empty.colorspace, empty.color_range = colorspace, color_range
    return empty


def view(plane: Any) -> NDArray[np.uint8]:
    """A plane's own memory as [height, width]."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
