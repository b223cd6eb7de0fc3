"""A decoded frame: RGB images of it, and of parts of it, converted from the decoder's planes only when needed."""

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

_MAX_SCALERS = 16
"""Image sizes for which a scaler is cached."""
_PLANAR = ("yuv420p", "yuvj420p")
"""Pixel formats whose planes are cropped and halved before they are converted to RGB."""
BLOCK_PX = 8
"""Pixels in a row that the scaler processes at once."""
_ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
_FULL_RANGE = 2
"""FFmpeg's colour range with luma in 0..255; all others have luma in 16..235."""
_FROM_LIMITED = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)

Rect = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the source."""


def reduction(width_px: int, height_px: int) -> int:
    """Return how many times a frame can be halved before its longer side falls below 640 px."""
    return max(int(np.log2(max(width_px, height_px) / 640)), 0)


def halvings_to(side: float, size_px: int) -> int:
    """Return how many times a side can be halved without falling below `size_px`."""
    return max(int(np.log2(max(side, 1) / size_px)), 0)


def square_halvings(x: int, y: int, side: int, size_px: int) -> int:
    """Return how many times the planes of a square are halved on its way to `size_px`.

    Its corners stay between pixels of the subsampled colour planes, so that halving a larger region and cropping the
    square out of it gives the same pixels.
    """
    count = halvings_to(side, size_px)
    while count and any(place % (2 << count) for place in (x, y, side)):
        count -= 1
    return count


def region_reads(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Rect:
    """Return the pixels that the RGB conversion of a region reads, in a frame of a size (width, height)."""
    right, bottom = (
        min(-(-(end + 1) // BLOCK_PX) * BLOCK_PX, most) for end, most in zip((x + width, y + height), size, strict=True)
    )
    return x // 2 * 2, y // 2 * 2, right, bottom


def square_reads(x: int, y: int, side: int, size_px: int, size: tuple[int, int]) -> tuple[Rect, int]:
    """Return the pixels that downscaling a square reads, and how many times they may be halved beforehand."""
    count = square_halvings(x, y, side, size_px)
    return ((x, y, x + side, y + side) if count else region_reads(x, y, side, side, size)), count


class FramePixels(Protocol):
    """What crops are cut from: a decoded frame, or the regions of one in the ROI cache."""

    def region(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return the pixels [y : y + height, x : x + width] of the source: RGB uint8 [height, width, 3]."""
        ...

    def square(self, x: int, y: int, side: int, size_px: int) -> NDArray[np.uint8]:
        """Return a square of at least `size_px`, area-averaged: RGB uint8 [size_px, size_px, 3]."""
        ...


@dataclass(frozen=True, slots=True)
class Roi:
    """Planes of a region of interest of a 4:2:0 frame, halved `halvings` times."""

    frame: Any
    """The planes."""
    left: int
    """Its first column in the source."""
    top: int
    """Its first row in the source."""
    halvings: int
    """How many times the planes were halved; 0 = full resolution."""

    def cut(self, rect: Rect, halvings: int) -> "Roi":
        """Return a part of it, halved `halvings` times in all; corners of `rect` are multiples of 2 << halvings."""
        x, y, right, bottom = (
            (place - start) >> self.halvings for place, start in zip(rect, (self.left, self.top) * 2, strict=True)
        )
        planes = _cut(self.frame, x, y, right - x, bottom - y)
        more = halvings - self.halvings
        if more:
            planes = _scaled(planes, planes.width >> more, planes.height >> more)
        return Roi(planes, rect[0], rect[1], halvings)

    def rgb_region(
        self, x: int, y: int, width: int, height: int, size: tuple[int, int], scalers: "Scalers"
    ) -> NDArray[np.uint8]:
        """Return `FramePixels.region` of a frame of a size (width, height), from a region that is not halved."""
        left, top, right, bottom = region_reads(x, y, width, height, size)
        rgb = scalers.rgb(self.cut((left, top, right, bottom), 0).frame)
        return rgb[y - top : y - top + height, x - left : x - left + width]

    def rgb_square(self, x: int, y: int, side: int, size_px: int, scalers: "Scalers") -> NDArray[np.uint8]:
        """Return `FramePixels.square` of a square that is halved at least once, from a region halved no more often."""
        small = self.cut((x, y, x + side, y + side), square_halvings(x, y, side, size_px)).frame
        return scalers.rgb(small, None if small.width == size_px else (size_px, size_px))


class DecodedFrame:
    """A decoded frame as a player shows it: rotation metadata applied, and a change of size within the file undone.

    Conversion to RGB is lazy; where fewer pixels are needed, planes are downscaled before the conversion.
    """

    def __init__(self, frame: Any, scalers: "Scalers", halvings: int = 0, rotation_quarters: int = 0) -> None:
        """Wrap a decoder's frame.

        Args:
            frame: PyAV's frame.
            scalers: converters to RGB.
            halvings: how often `rgb` is halved.
            rotation_quarters: quarter turns, counter-clockwise, that the rotation metadata asks for.
        """
        self._frame, self._scalers, self._halvings = frame, scalers, halvings
        self._rotation_quarters = rotation_quarters
        self._planar = frame.format.name in _PLANAR

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the source after rotation (px)."""
        size = self._frame.width, self._frame.height
        return size[::-1] if self._rotation_quarters % 2 else size

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of `rgb` (px)."""
        width, height = self.size
        return height >> self._halvings, width >> self._halvings

    @property
    def whole(self) -> Roi | None:
        """All of its planes; None where they cannot be cropped (another pixel format, or a pending rotation)."""
        return Roi(self._frame, 0, 0, 0) if self._planar and not self._rotation_quarters else None

    def planes(self, halvings: int) -> Roi:
        """Return all of its planes, halved at most `halvings` times; only where `whole` is not None."""
        reduced = self._halvings
        exact = not any(side % (2 << reduced) for side in self.size)
        return Roi(self._source, 0, 0, reduced) if halvings >= reduced and exact else Roi(self._frame, 0, 0, 0)

    @functools.cached_property
    def _source(self) -> Any:
        """The frame, downscaled if requested and possible plane by plane."""
        if not self._halvings or not self._planar:
            return self._frame
        return _scaled(self._frame, self._frame.width >> self._halvings, self._frame.height >> self._halvings)

    @functools.cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """The whole frame, downscaled if requested: uint8 [H, W, 3]."""
        if self._planar or not self._halvings:
            return self._rotated(self._scalers.rgb(self._source))
        height, width = self.shape
        size = max(width, 1), max(height, 1)
        return np.asarray(cv2.resize(self._full_size_rgb, size, interpolation=cv2.INTER_AREA), np.uint8)

    @functools.cached_property
    def _full_size_rgb(self) -> NDArray[np.uint8]:
        """The whole frame at the source's size: uint8 [H, W, 3]."""
        return self._rotated(self._scalers.rgb(self._frame)) if self._halvings else self.rgb

    def within(self, side_px: int) -> NDArray[np.uint8]:
        """Return `rgb` with its longer side at most `side_px`: uint8 [h, w, 3].

        Bilinear interpolation is enough, as a downscaled `rgb` is less than twice as large.
        """
        scale = side_px / max(self.shape)
        if scale >= 1:
            return self.rgb
        size = max(round(self._source.width * scale), 2), max(round(self._source.height * scale), 2)
        if not self._planar:
            return np.asarray(cv2.resize(self.rgb, size[:: -1 if self._rotation_quarters % 2 else 1]), np.uint8)
        return self._rotated(self._scalers.rgb(_scaled(self._source, *size, cv2.INTER_LINEAR)))

    def small(self, side_px: int) -> NDArray[np.uint8]:
        """Return a downscaled copy whose longer side is `side_px`: uint8 [h, w, 3]."""
        scale = side_px / max(self._frame.width, self._frame.height)
        size = max(round(self._frame.width * scale), 2), max(round(self._frame.height * scale), 2)
        return self._rotated(self._scalers.rgb(self._source, size))

    def region(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See `FramePixels`; no other pixels are converted."""
        if "_full_size_rgb" in self.__dict__ or ("rgb" in self.__dict__ and not self._halvings) or self.whole is None:
            return self._full_size_rgb[y : y + height, x : x + width]
        return self.whole.rgb_region(x, y, width, height, self.size, self._scalers)

    def square(self, x: int, y: int, side: int, size_px: int) -> NDArray[np.uint8]:
        """See `FramePixels`; planes are halved before they are converted, which is less work."""
        if self.whole is None or not square_halvings(x, y, side, size_px):
            return downscale(self.region(x, y, side, side), size_px, size_px)
        return self.whole.rgb_square(x, y, side, size_px, self._scalers)

    def grey(self, x: int, y: int, width: int, height: int, side_px: int) -> NDArray[np.uint8]:
        """Return grey values 0..255 of a region of the source, resized to [side_px, side_px]."""
        method = cv2.INTER_AREA if height > side_px else cv2.INTER_LINEAR
        if self.whole is None:
            grey = cv2.cvtColor(self.region(x, y, width, height), cv2.COLOR_RGB2GRAY)
            return np.asarray(cv2.resize(grey, (side_px, side_px), interpolation=method), np.uint8)
        roi = self.planes(halvings_to(min(width, height), side_px))
        x0, y0, x1, y1 = (place >> roi.halvings for place in (x, y, x + width, y + height))
        luma = plane_view(roi.frame.planes[0])[y0:y1, x0:x1]
        if min(luma.shape) > side_px:
            luma = downscale(luma, side_px, side_px, cv2.INTER_LINEAR)
        luma = np.asarray(cv2.resize(luma, (side_px, side_px), interpolation=method), np.uint8)
        full = self._frame.format.name == "yuvj420p" or self._frame.color_range == _FULL_RANGE
        return luma if full else np.asarray(cv2.LUT(luma, _FROM_LIMITED), np.uint8)

    def _rotated(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.rot90(image, self._rotation_quarters) if self._rotation_quarters else image


class Scalers:
    """Cached converters to RGB, one per image size: their tables are reused, which frame.to_ndarray would not do."""

    def __init__(self) -> None:
        self._cached: dict[tuple[int, ...], Any] = {}
        self._size: tuple[int, int] | None = None

    def decoded(self, frame: Any, reduced: bool) -> DecodedFrame:
        """Return a decoder's frame with its rotation applied, at the size of the first one."""
        rotation_quarters = round(frame.rotation / 90) % 4
        self._size = self._size or (frame.width, frame.height)
        if (frame.width, frame.height) != self._size:
            frame = self._scaler(frame).reformat(frame, width=self._size[0], height=self._size[1], threads=1)
        if rotation_quarters and frame.format.name in _PLANAR:
            frame, rotation_quarters = _rotate90(frame, rotation_quarters), 0
        return DecodedFrame(frame, self, reduction(*self._size) if reduced else 0, rotation_quarters)

    def rgb(self, frame: Any, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return a whole frame as uint8 [H, W, 3], area-averaged to a size (width, height) if one is given."""
        from av.video.reformatter import Interpolation

        given: dict[str, Any] = {}
        if size is not None:
            exact = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
            given = {"width": size[0], "height": size[1], "interpolation": exact}
        image: NDArray[np.uint8] = (
            self._scaler(frame, size).reformat(frame, format="rgb24", threads=1, **given).to_ndarray()
        )
        return image

    def _scaler(self, frame: Any, to: tuple[int, int] | None = None) -> Any:
        import av

        sizes = (frame.width, frame.height, *(to or ()))
        if sizes not in self._cached:
            if len(self._cached) >= _MAX_SCALERS:
                self._cached.pop(next(iter(self._cached)))
            self._cached[sizes] = av.video.reformatter.VideoReformatter()
        return self._cached[sizes]


def _scaled(frame: Any, width: int, height: int, odd: int = cv2.INTER_AREA) -> Any:
    """Return a 4:2:0 frame at a smaller size (see `downscale`)."""
    small = _blank_like(frame, max(width, 2), max(height, 2))
    for plane, target in zip(frame.planes, small.planes, strict=True):
        plane_view(target)[:] = downscale(plane_view(plane), target.width, target.height, odd)
    return small


def downscale(image: NDArray[np.uint8], width: int, height: int, odd: int = cv2.INTER_AREA) -> NDArray[np.uint8]:
    """Return area averages of an image [H, W] or [H, W, 3]: halved while possible, far faster than odd factors.

    Args:
        image: at least as large as the result.
        width: of the result (px).
        height: of the result (px).
        odd: OpenCV's interpolation for the factor below two that is left; area averages would take longest there.
    """
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        half = image.shape[1] // 2, image.shape[0] // 2
        image = np.asarray(cv2.resize(image, half, interpolation=cv2.INTER_AREA), np.uint8)
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=odd), np.uint8)


def _rotate90(frame: Any, rotation_quarters: int) -> Any:
    """Return a 4:2:0 frame rotated counter-clockwise by a number of quarter turns."""
    upright = _blank_like(frame, *(frame.height, frame.width)[:: 1 if rotation_quarters % 2 else -1])
    for plane, target in zip(frame.planes, upright.planes, strict=True):
        plane_view(target)[:] = cv2.rotate(plane_view(plane), _ROTATIONS[rotation_quarters])
    return upright


def _cut(frame: Any, x: int, y: int, width: int, height: int) -> Any:
    """Return a region of a 4:2:0 frame; x and y are even."""
    region = _blank_like(frame, width, height)
    for number, (plane, target) in enumerate(zip(frame.planes, region.planes, strict=True)):
        left, top = (x, y) if not number else (x // 2, y // 2)
        plane_view(target)[:] = plane_view(plane)[top : top + target.height, left : left + target.width]
    return region


def _blank_like(frame: Any, width: int, height: int) -> Any:
    """Return a blank frame with the pixel format and colour properties of another."""
    return blank_frame(width, height, frame.format.name, frame.colorspace, frame.color_range)


def blank_frame(width: int, height: int, format: str, colorspace: int, color_range: int) -> Any:
    """Return a blank frame; colour space and colour range are FFmpeg's numbers."""
    import av

    empty = av.VideoFrame(width, height, format)
    empty.colorspace, empty.color_range = colorspace, color_range
    return empty


def plane_view(plane: Any) -> NDArray[np.uint8]:
    """Return a view of a plane's memory, uint8 [height, width]."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
