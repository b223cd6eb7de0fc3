"""The pixels around faces that the first pass saw, kept so that the second need not decode them again.

Nobody knows yet where clips will lie. So what is kept of each frame is one piece: the squares that clips of its faces
would have if they were cut from this frame alone, with room around them, its sides halved as often as theirs would be
on the way to a clip's size. Four times a second there are also the squares by which people are recognised. What the
second pass needs beyond that is decoded again, and both give the same bytes.
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
from components.curate.video.crops import SMALLEST, Crop, square_around
from components.curate.video.faces import MAX_GAP
from components.curate.video.frame import (
    BLOCK_PX,
    Picture,
    Piece,
    Rect,
    Scalers,
    blank_frame,
    halvings_to,
    part_reads,
    shrunk,
    square_halvings,
    square_reads,
    view,
)
from components.curate.video.identity import FACE_EVERY, FACE_PX, face_square

log = logging.getLogger(__name__)

_PIXELS, _INDEX = "cutouts.yuv", "cutouts.npz"
WORTH_PX = 480
"""Longer side of the smallest pictures that take longer to decode again than to keep."""
_ROOM = 0.25
"""Room on each side of a piece, as a share of what it has to hold."""
_NEARER = 0.8
"""Faces grow and shrink: a piece is halved as suits a square of this share of the one that a clip would have now."""
_ROW = np.dtype(
    [("frame", "<i4"), ("rect", "<i4", 4), ("halvings", "<i4"), ("face", "?"), ("offset", "<i8")],
)
"""A piece: where it lies in the source, how often it was halved, whether it serves to recognise a face, first byte."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What all pieces of a file share."""

    width: int
    height: int
    format: str
    colorspace: int
    color_range: int


class CutoutWriter:
    """Takes in the frames of one source; one that is left by an error, or can't write, leaves no file."""

    def __init__(self, folder: Path, config: CurationConfig, most_bytes: float) -> None:
        self._folder, self._config, self._most_bytes = folder, config, most_bytes
        self._rows: list[tuple[Any, ...]] = []
        self._kind: _Kind | None = None
        self._file: IO[bytes] | None = None
        self._offset = 0
        self._picture: Picture | None = None
        self._written: dict[tuple[Rect, int], int] = {}
        self._region: tuple[Rect, int] | None = None
        self._seen = -MAX_GAP
        self._faces: list[NDArray[np.float32]] = []

    def __enter__(self) -> "CutoutWriter":
        discard(self._folder)
        if self._most_bytes > 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / _PIXELS).open("wb")
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        with self._while_disk_lasts():
            if self._file is not None:
                self._file.close()
                if self._kind is not None and not failed:
                    facts = np.frombuffer(json.dumps(asdict(self._kind)).encode(), np.uint8)
                    np.savez(self._folder / _INDEX, rows=np.array(self._rows, _ROW), kind=facts)
                    return
        discard(self._folder)

    def push(self, number: int, picture: Picture, faces: list[NDArray[np.float32]]) -> None:
        """Keep what may be needed of a frame.

        Args:
            number: frame at 24 fps.
            picture: the frame.
            faces: features of its faces, or of those of the last measured frame.
        """
        whole = picture.whole
        if self._file is None or whole is None or self._offset >= self._most_bytes:
            return
        kind = _Kind(*picture.size, whole.frame.format.name, whole.frame.colorspace, whole.frame.color_range)
        self._kind = self._kind or kind
        if kind != self._kind:
            return
        if faces:
            self._seen = number
            if faces is not self._faces:
                self._follow(faces, picture.size)
        elif number - self._seen > MAX_GAP:
            self._region = None
        self._faces = faces
        with self._while_disk_lasts():
            if self._region is not None:
                self._write(number, picture, *self._region)
            for face in faces if number % FACE_EVERY == 0 else ():
                square = face_square(face, picture.size)
                reads, halvings = square_reads(*square.place, min(square.side, FACE_PX), picture.size)
                self._write(number, picture, reads, halvings, face=True)

    @contextlib.contextmanager
    def _while_disk_lasts(self) -> Iterator[None]:
        """A full disk must not cost the source: its pictures can be decoded again, and their room is given back."""
        try:
            yield
        except OSError as error:
            log.warning("%s: no pictures are kept for the second pass: %s", self._folder.name, error)
            if self._file is not None:
                with contextlib.suppress(OSError):  # what is still buffered has no room either
                    self._file.close()
            self._file = None
            discard(self._folder)

    def _follow(self, faces: list[NDArray[np.float32]], size: tuple[int, int]) -> None:
        """Take another piece where the faces leave the one so far, or where a coarser or a finer one is due."""
        config = self._config
        boxes = np.stack(faces)[:, :4]
        squares = [square_around(face, config.crop_faces, size, config.size_px) for face in faces]
        # Where others are inside, a clip's square is tighter (see crops.plan_crop).
        room = [config.crop_faces if square.shows(boxes).sum() <= 1 else SMALLEST for square in squares]
        tightest = float(np.min((boxes[:, 3] - boxes[:, 1]) * room))
        halvings = halvings_to(_NEARER * min(tightest, *size), config.size_px)
        if len(faces) == 1 and size[0] == size[1]:
            squares = [Crop(x=0, y=0, side=size[0])]  # it may be used whole
            halvings = min(halvings, square_halvings(*squares[0].place, config.size_px))
        hull = (
            min(square.x for square in squares),
            min(square.y for square in squares),
            max(square.x + square.side for square in squares),
            max(square.y + square.side for square in squares),
        )
        if self._region is not None:
            rect, halved = self._region
            if _holds(np.array(rect), hull) and halvings - 1 <= halved <= halvings:
                return
        self._region = _with_room(hull, halvings, size), halvings

    def _write(self, number: int, picture: Picture, rect: Rect, halvings: int, face: bool = False) -> None:
        """Keep a piece of a frame; of a picture that a slow source shows again it is there already."""
        assert self._file is not None
        if picture is not self._picture:
            self._picture, self._written = picture, {}
        place = rect, halvings
        if place not in self._written:
            self._written[place] = self._offset
            for plane in picture.planes(halvings).cut(rect, halvings).frame.planes:
                self._offset += self._file.write(np.ascontiguousarray(view(plane)).data)
        self._rows.append((number, rect, halvings, face, self._written[place]))


def _with_room(hull: Rect, halvings: int, size: tuple[int, int]) -> Rect:
    """A larger rectangle inside a picture of a size (width, height), between pixels that stay whole when halved."""
    grid = 2 << halvings
    block = max(grid, BLOCK_PX)
    sides = []
    for low, high, most in ((hull[0], hull[2], size[0]), (hull[1], hull[3], size[1])):
        room = round(_ROOM * (high - low))
        start, stop = max(low - room, 0) // block * block, -(-(high + room) // block) * block
        sides.append((start, min(stop, most // grid * grid if halvings else most)))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def _holds(rects: NDArray[np.int32], rect: Rect) -> NDArray[np.bool_]:
    """Whether rectangles [..., 4] hold another: bool [...]."""
    x0, y0, x1, y1 = np.moveaxis(rects, -1, 0)
    return np.asarray((x0 <= rect[0]) & (y0 <= rect[1]) & (x1 >= rect[2]) & (y1 >= rect[3]))


def _serve(pieces: NDArray[Any], rect: Rect, halvings: int) -> NDArray[np.bool_]:
    """Which pieces hold a rectangle and are fine enough."""
    return _holds(pieces["rect"], rect) & (pieces["halvings"] <= halvings)


class Cutouts:
    """What was kept of a source."""

    def __init__(self, folder: Path, frames: int) -> None:
        """What is there, which may be nothing.

        Args:
            folder: where a `CutoutWriter` wrote.
            frames: frames of the source.
        """
        self._pixels = folder / _PIXELS
        self._rows = np.zeros(0, _ROW)
        self._scalers = Scalers()
        if (folder / _INDEX).is_file():
            with np.load(folder / _INDEX, allow_pickle=False) as index:
                self._rows = index["rows"]
                self._kind = _Kind(**json.loads(index["kind"].tobytes()))
        self._of_frame = np.searchsorted(self._rows["frame"], np.arange(frames + 1))
        self._surroundings = np.full(frames, -1)
        around = np.flatnonzero(~self._rows["face"])
        self._surroundings[self._rows["frame"][around]] = around

    def hold_all(self, crop: Crop, start: int, stop: int, size_px: int) -> NDArray[np.bool_]:
        """On which of the frames start..stop a clip's square is there, to be cut to `size_px`: bool [stop - start]."""
        rows = self._surroundings[start:stop]
        if not len(self._rows):
            return np.zeros(len(rows), bool)
        return (rows >= 0) & _serve(self._rows[rows], *square_reads(*crop.place, size_px, self._size))

    def hold(self, crop: Crop, number: int, size_px: int) -> bool:
        """Whether a square of a frame is there, to be cut to `size_px`."""
        there = self._of(number)
        if not len(there):
            return False
        return bool(_serve(there, *square_reads(*crop.place, size_px, self._size)).any())

    def picture(self, number: int) -> "KeptPicture":
        """What is there of a frame."""
        return KeptPicture(self, number)

    def _of(self, number: int) -> NDArray[Any]:
        """The pieces of a frame."""
        return self._rows[slice(*self._of_frame[number : number + 2])]

    @property
    def _size(self) -> tuple[int, int]:
        return self._kind.width, self._kind.height

    def _piece(self, number: int, rect: Rect, halvings: int) -> Piece:
        """The first piece of a frame that holds a rectangle and is fine enough."""
        there = self._of(number)
        fits = np.flatnonzero(_serve(there, rect, halvings))
        if not len(fits):
            raise ValueError(f"frame {number} was not kept around {rect}: ask whether it is held first")
        row = there[fits[0]]
        x0, y0, x1, y1 = (int(place) >> int(row["halvings"]) for place in row["rect"])
        frame = blank_frame(x1 - x0, y1 - y0, self._kind.format, self._kind.colorspace, self._kind.color_range)
        targets = [view(plane) for plane in frame.planes]
        sizes = [target.size for target in targets]
        # Read, not mapped: mapped pages of a long film would count as memory of this process.
        kept = np.fromfile(self._pixels, np.uint8, sum(sizes), offset=int(row["offset"]))
        for target, values in zip(targets, np.split(kept, np.cumsum(sizes)[:-1]), strict=True):
            target[:] = values.reshape(target.shape)
        return Piece(frame, int(row["rect"][0]), int(row["rect"][1]), int(row["halvings"]))


class KeptPicture:
    """A frame of which only pieces are there (see `picture.Pixels`)."""

    def __init__(self, cutouts: Cutouts, number: int) -> None:
        self._cutouts, self._number = cutouts, number

    def part(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See `Pixels`."""
        kept = self._cutouts
        piece = kept._piece(self._number, part_reads(x, y, width, height, kept._size), 0)
        return piece.rgb_part(x, y, width, height, kept._size, kept._scalers)

    def square(self, x: int, y: int, side: int, size_px: int) -> NDArray[np.uint8]:
        """See `Pixels`."""
        halvings = square_halvings(x, y, side, size_px)
        if not halvings:
            return shrunk(self.part(x, y, side, side), size_px, size_px)
        piece = self._cutouts._piece(self._number, (x, y, x + side, y + side), halvings)
        return piece.rgb_square(x, y, side, size_px, self._cutouts._scalers)


def discard(folder: Path) -> None:
    """Delete what was kept of a source, if anything was."""
    for name in (_INDEX, _PIXELS):  # without its index a file of pixels counts for nothing
        (folder / name).unlink(missing_ok=True)
