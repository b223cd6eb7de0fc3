"""One decoded frame on its way from the decoder's planes to the RGB pictures that are asked for."""

import functools
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_MOST_SCALERS = 16
"""Sizes for which a converter is kept."""


def reduction(width_px: int, height_px: int) -> int:
    """How many times a picture can be halved before its longer side falls below 640 px."""
    return max(int(np.log2(max(width_px, height_px) / 640)), 0)


class Picture:
    """A decoded frame as it is shown: a phone's rotation flag applied, a change of size within a file undone.

    Only what is asked for is converted to RGB, and reduced before it is converted where that gives less to convert.
    """

    def __init__(self, frame: Any, scalers: "Scalers", halvings: int = 0) -> None:
        self._frame, self._scalers, self._halvings = frame, scalers, halvings
        self._turns = round(getattr(frame, "rotation", 0) / 90) % 4
        self._planar = frame.format.name in ("yuv420p", "yuvj420p")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width as it is shown."""
        size = self._frame.height >> self._halvings, self._frame.width >> self._halvings
        return size[::-1] if self._turns % 2 else size

    @functools.cached_property
    def _source(self) -> Any:
        """The frame, reduced where that is wanted and can be done plane by plane."""
        if not self._halvings or not self._planar:
            return self._frame
        return _scaled(self._frame, self._frame.width >> self._halvings, self._frame.height >> self._halvings)

    @functools.cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """All of it, uint8 [H, W, 3]."""
        picture = self._scalers.rgb(self._source)
        if self._halvings and not self._planar:
            size = (max(self._frame.width >> self._halvings, 1), max(self._frame.height >> self._halvings, 1))
            picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        return self._turned(picture)

    def small(self, side_px: int) -> NDArray[np.uint8]:
        """A reduced copy whose longer side is `side_px`: uint8 [h, w, 3]."""
        scale = side_px / max(self._frame.width, self._frame.height)
        size = max(round(self._frame.width * scale), 2), max(round(self._frame.height * scale), 2)
        return self._turned(self._scalers.rgb(self._frame, size))

    def part(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """The pixels rgb[y : y + height, x : x + width] without the conversion of the others."""
        if "rgb" in self.__dict__ or self._turns or not self._planar or self._halvings:
            return self.rgb[y : y + height, x : x + width]
        left, top = x // 2 * 2, y // 2 * 2
        right, bottom = (
            min(-(-(end + 1) // 8) * 8, most)
            for end, most in ((x + width, self._frame.width), (y + height, self._frame.height))
        )
        piece = self._scalers.rgb(_piece(self._frame, left, top, right - left, bottom - top))
        return piece[y - top : y - top + height, x - left : x - left + width]

    def square(self, x: int, y: int, side: int, size_px: int) -> NDArray[np.uint8]:
        """The pixels rgb[y : y + side, x : x + side] reduced to means over areas: [size_px, size_px, 3].

        From twice the size on, the reduction is part of the conversion of a square between even pixels: less work.
        """
        odd = x % 2 or y % 2 or side % 2
        if side < 2 * size_px or odd or self._turns or not self._planar or self._halvings:
            return shrunk(self.part(x, y, side, side), size_px, size_px)
        return self._scalers.rgb(_piece(self._frame, x, y, side, side), (size_px, size_px))

    def _turned(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.rot90(picture, self._turns) if self._turns else picture


class Scalers:
    """Converters to RGB that keep their tables, one for each size of picture; frame.to_ndarray would not."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Any] = {}
        self._size: tuple[int, int] | None = None

    def picture(self, frame: Any, reduced: bool) -> Picture:
        """A frame as it is shown, at the size of the first one."""
        self._size = self._size or (frame.width, frame.height)
        if (frame.width, frame.height) != self._size:
            frame = self._of(frame).reformat(frame, width=self._size[0], height=self._size[1], threads=1)
        return Picture(frame, self, reduction(*self._size) if reduced else 0)

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


def _scaled(frame: Any, width: int, height: int) -> Any:
    """A 4:2:0 frame at a smaller size."""
    small = _blank(frame, max(width, 2), max(height, 2), frame.format.name)
    for plane, target in zip(frame.planes, small.planes, strict=True):
        _view(target)[:] = shrunk(_view(plane), target.width, target.height)
    return small


def shrunk(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Means over areas of a picture [H, W] or [H, W, 3]; halved while it can be, many times as fast as odd factors."""
    while picture.shape[0] >= 2 * height and picture.shape[1] >= 2 * width:
        half = picture.shape[1] // 2, picture.shape[0] // 2
        picture = np.asarray(cv2.resize(picture, half, interpolation=cv2.INTER_AREA), np.uint8)
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _piece(frame: Any, x: int, y: int, width: int, height: int) -> Any:
    """A part of a 4:2:0 frame; x and y are even."""
    piece = _blank(frame, width, height, frame.format.name)
    for number, (plane, target) in enumerate(zip(frame.planes, piece.planes, strict=True)):
        left, top = (x, y) if not number else (x // 2, y // 2)
        _view(target)[:] = _view(plane)[top : top + target.height, left : left + target.width]
    return piece


def _blank(frame: Any, width: int, height: int, name: str) -> Any:
    """A new frame of a pixel format with another's colours."""
    import av

    blank = av.VideoFrame(width, height, name)
    blank.colorspace, blank.color_range = frame.colorspace, frame.color_range
    return blank


def _view(plane: Any) -> NDArray[np.uint8]:
    """A plane's own memory as [height, width]."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
