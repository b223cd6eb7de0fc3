"""The face regions (ROIs) of a source's frames, cached to save the clip pass from decoding the source again.

Where clips will be cut is not known yet. So one region of each frame is cached: the hull of the crops that its faces
would have if they were cut from this frame alone, with a margin, halved as often as the crops would be on their way to
the size of clips. Four times a second the crops for face recognition are cached as well. What the clip pass needs
beyond that is decoded again; both ways give the same bytes.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from components.curate.config import CurationConfig
from components.curate.video.crops import MIN_FACE_HEIGHTS, Crop, crop_around
from components.curate.video.faces import MAX_GAP
from components.curate.video.frame import (
    BLOCK_PX,
    DecodedFrame,
    Rect,
    Roi,
    Scalers,
    blank_frame,
    downscale,
    halvings_to,
    plane_view,
    region_reads,
    square_halvings,
    square_reads,
)
from components.curate.video.identity import FACE_EVERY, FACE_PX, face_crop

log = logging.getLogger(__name__)

_PIXELS, _INDEX = "roi_cache.yuv", "roi_cache.npz"
MIN_CACHED_PX = 480
"""Longer side of the smallest frames that take longer to decode again than to cache."""
_MARGIN = 0.25
"""Margin on each side of a region, as a fraction of the crops' hull."""
_ZOOM = 0.8
"""Faces change size: the resolution of a region suffices for crops down to this fraction of the current one."""
_ROW = np.dtype(
    [("frame", "<i4"), ("rect", "<i4", 4), ("halvings", "<i4"), ("face", "?"), ("offset", "<i8")],
)
"""A region: frame, rectangle in the source, number of halvings, whether it is for face recognition, first byte."""


@dataclass(frozen=True, slots=True)
class _Format:
    """Frame size and pixel format that all regions of a file share."""

    width: int
    height: int
    format: str
    colorspace: int
    color_range: int


class RoiCacheWriter:
    """Writes the regions of one source; after an error, or when the disk is full, no file is left."""

    def __init__(self, folder: Path, config: CurationConfig, max_bytes: float) -> None:
        self._folder, self._config, self._max_bytes = folder, config, max_bytes
        self._rows: list[tuple[Any, ...]] = []
        self._format: _Format | None = None
        self._file: IO[bytes] | None = None
        self._offset = 0
        self._frame: DecodedFrame | None = None
        self._written: dict[tuple[Rect, int], int] = {}
        self._region: tuple[Rect, int] | None = None
        self._last_seen = -MAX_GAP
        self._faces: list[NDArray[np.float32]] = []

    def __enter__(self) -> "RoiCacheWriter":
        discard(self._folder)
        if self._max_bytes > 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / _PIXELS).open("wb")
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        with self._stop_if_disk_is_full():
            if self._file is not None:
                self._file.close()
                if self._format is not None and not failed:
                    facts = np.frombuffer(json.dumps(asdict(self._format)).encode(), np.uint8)
                    np.savez(self._folder / _INDEX, rows=np.array(self._rows, _ROW), format=facts)
                    return
        discard(self._folder)

    def push(self, number: int, frame: DecodedFrame, faces: list[NDArray[np.float32]]) -> None:
        """Write the regions of a frame that the clip pass may need.

        Args:
            number: frame at 24 fps.
            frame: the frame.
            faces: features of its faces, or of those of the last measured frame.
        """
        whole = frame.whole
        if self._file is None or whole is None or self._offset >= self._max_bytes:
            return
        format = _Format(*frame.size, whole.frame.format.name, whole.frame.colorspace, whole.frame.color_range)
        self._format = self._format or format
        if format != self._format:
            return
        if faces:
            self._last_seen = number
            if faces is not self._faces:
                self._update_region(faces, frame.size)
        elif number - self._last_seen > MAX_GAP:
            self._region = None
        self._faces = faces
        with self._stop_if_disk_is_full():
            if self._region is not None:
                self._write(number, frame, *self._region)
            for face in faces if number % FACE_EVERY == 0 else ():
                crop = face_crop(face, frame.size)
                reads, halvings = square_reads(*crop.place, min(crop.side, FACE_PX), frame.size)
                self._write(number, frame, reads, halvings, face=True)

    @contextlib.contextmanager
    def _stop_if_disk_is_full(self) -> Iterator[None]:
        """Give up the cache, not the source, when the disk is full: its frames can be decoded again."""
        try:
            yield
        except OSError as error:
            log.warning("%s: no ROI cache for the clip pass: %s", self._folder.name, error)
            if self._file is not None:
                with contextlib.suppress(OSError):  # the buffered data does not fit either
                    self._file.close()
            self._file = None
            discard(self._folder)

    def _update_region(self, faces: list[NDArray[np.float32]], size: tuple[int, int]) -> None:
        """Choose another region where the faces leave the current one, or where another resolution is needed."""
        config = self._config
        boxes = np.stack(faces)[:, :4]
        crops = [crop_around(face, config.crop_faces, size, config.size_px) for face in faces]
        # A clip's crop is tighter where it would show other people (see crops.plan_crop).
        face_heights = [config.crop_faces if crop.shows(boxes).sum() <= 1 else MIN_FACE_HEIGHTS for crop in crops]
        tightest = float(np.min((boxes[:, 3] - boxes[:, 1]) * face_heights))
        halvings = halvings_to(_ZOOM * min(tightest, *size), config.size_px)
        if len(faces) == 1 and size[0] == size[1]:
            crops = [Crop(x=0, y=0, side=size[0])]  # the whole frame may be the crop
            halvings = min(halvings, square_halvings(*crops[0].place, config.size_px))
        hull = (
            min(crop.x for crop in crops),
            min(crop.y for crop in crops),
            max(crop.x + crop.side for crop in crops),
            max(crop.y + crop.side for crop in crops),
        )
        if self._region is not None:
            rect, halved = self._region
            if _contains(np.array(rect), hull) and halvings - 1 <= halved <= halvings:
                return
        self._region = _with_margin(hull, halvings, size), halvings

    def _write(self, number: int, frame: DecodedFrame, rect: Rect, halvings: int, face: bool = False) -> None:
        """Write a region of a frame; for a duplicate frame only the index entry."""
        assert self._file is not None
        if frame is not self._frame:
            self._frame, self._written = frame, {}
        region = rect, halvings
        if region not in self._written:
            self._written[region] = self._offset
            for plane in frame.planes(halvings).cut(rect, halvings).frame.planes:
                self._offset += self._file.write(np.ascontiguousarray(plane_view(plane)).data)
        self._rows.append((number, rect, halvings, face, self._written[region]))


def _with_margin(hull: Rect, halvings: int, size: tuple[int, int]) -> Rect:
    """Return a larger rectangle inside a frame of a size (width, height), aligned to whole pixels at every halving."""
    grid = 2 << halvings
    block = max(grid, BLOCK_PX)
    sides = []
    for low, high, most in ((hull[0], hull[2], size[0]), (hull[1], hull[3], size[1])):
        margin = round(_MARGIN * (high - low))
        start, stop = max(low - margin, 0) // block * block, -(-(high + margin) // block) * block
        sides.append((start, min(stop, most // grid * grid if halvings else most)))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def _contains(rects: NDArray[np.int32], rect: Rect) -> NDArray[np.bool_]:
    """Return whether rectangles [..., 4] contain another: bool [...]."""
    x0, y0, x1, y1 = np.moveaxis(rects, -1, 0)
    return np.asarray((x0 <= rect[0]) & (y0 <= rect[1]) & (x1 >= rect[2]) & (y1 >= rect[3]))


def _usable(rows: NDArray[Any], rect: Rect, halvings: int) -> NDArray[np.bool_]:
    """Return which regions contain a rectangle at sufficient resolution: bool [rows]."""
    return _contains(rows["rect"], rect) & (rows["halvings"] <= halvings)


class RoiCache:
    """Reads the cached regions of a source that a `RoiCacheWriter` wrote."""

    def __init__(self, folder: Path, frames: int) -> None:
        """Open the cache of a source; it may be empty.

        Args:
            folder: where a `RoiCacheWriter` wrote.
            frames: frames of the source.
        """
        self._pixels = folder / _PIXELS
        self._rows = np.zeros(0, _ROW)
        self._scalers = Scalers()
        if (folder / _INDEX).is_file():
            with np.load(folder / _INDEX, allow_pickle=False) as index:
                self._rows = index["rows"]
                self._format = _Format(**json.loads(index["format"].tobytes()))
        self._first_row = np.searchsorted(self._rows["frame"], np.arange(frames + 1))
        self._region_row = np.full(frames, -1)
        regions = np.flatnonzero(~self._rows["face"])
        self._region_row[self._rows["frame"][regions]] = regions

    def covers_span(self, crop: Crop, start: int, stop: int, size_px: int) -> NDArray[np.bool_]:
        """Return on which of the frames start..stop a clip's crop can be cut to `size_px`: bool [stop - start]."""
        rows = self._region_row[start:stop]
        if not len(self._rows):
            return np.zeros(len(rows), bool)
        return (rows >= 0) & _usable(self._rows[rows], *square_reads(*crop.place, size_px, self._size))

    def covers(self, crop: Crop, number: int, size_px: int) -> bool:
        """Return whether a crop of a frame can be cut to `size_px`."""
        rows = self._rows_of(number)
        if not len(rows):
            return False
        return bool(_usable(rows, *square_reads(*crop.place, size_px, self._size)).any())

    def frame(self, number: int) -> "CachedFrame":
        """Return the cached regions of a frame."""
        return CachedFrame(self, number)

    def _rows_of(self, number: int) -> NDArray[Any]:
        """Return the index rows of a frame."""
        return self._rows[slice(*self._first_row[number : number + 2])]

    @property
    def _size(self) -> tuple[int, int]:
        return self._format.width, self._format.height

    def _read(self, number: int, rect: Rect, halvings: int) -> Roi:
        """Read the first region of a frame that contains a rectangle at sufficient resolution."""
        rows = self._rows_of(number)
        fits = np.flatnonzero(_usable(rows, rect, halvings))
        if not len(fits):
            raise ValueError(f"frame {number} is not cached around {rect}: call covers() first")
        row = rows[fits[0]]
        x0, y0, x1, y1 = (int(place) >> int(row["halvings"]) for place in row["rect"])
        format = self._format
        frame = blank_frame(x1 - x0, y1 - y0, format.format, format.colorspace, format.color_range)
        targets = [plane_view(plane) for plane in frame.planes]
        sizes = [target.size for target in targets]
        # Read, not mapped: mapped pages of a long video would count as memory of this process.
        pixels = np.fromfile(self._pixels, np.uint8, sum(sizes), offset=int(row["offset"]))
        for target, values in zip(targets, np.split(pixels, np.cumsum(sizes)[:-1]), strict=True):
            target[:] = values.reshape(target.shape)
        return Roi(frame, int(row["rect"][0]), int(row["rect"][1]), int(row["halvings"]))


class CachedFrame:
    """A frame of which only regions are cached (see `frame.FramePixels`)."""

    def __init__(self, cache: RoiCache, number: int) -> None:
        self._cache, self._number = cache, number

    def region(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See `FramePixels`."""
        cache = self._cache
        roi = cache._read(self._number, region_reads(x, y, width, height, cache._size), 0)
        return roi.rgb_region(x, y, width, height, cache._size, cache._scalers)

    def square(self, x: int, y: int, side: int, size_px: int) -> NDArray[np.uint8]:
        """See `FramePixels`."""
        halvings = square_halvings(x, y, side, size_px)
        if not halvings:
            return downscale(self.region(x, y, side, side), size_px, size_px)
        roi = self._cache._read(self._number, (x, y, x + side, y + side), halvings)
        return roi.rgb_square(x, y, side, size_px, self._cache._scalers)


def discard(folder: Path) -> None:
    """Delete a source's ROI cache, if there is one."""
    for name in (_INDEX, _PIXELS):  # the pixel file is never read without its index
        (folder / name).unlink(missing_ok=True)
