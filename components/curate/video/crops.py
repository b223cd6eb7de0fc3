"""Square one-person crops: fixed within a clip, and shared by all clips of a person whose head stays inside."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.config import CurationConfig
from components.curate.video.faces import POINTS, Track
from components.curate.video.frame import FramePixels, halvings_to

_FACE_HEIGHT_IN_CROP = 0.46
"""Height of the face's centre in the crop: a little above the middle, to include the shoulders."""
MIN_FACE_HEIGHTS = 1.4
"""Smallest side of a crop in face heights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """A square of source pixels."""

    x: int
    """Left edge."""
    y: int
    """Upper edge."""
    side: int
    """Width and height."""

    @property
    def place(self) -> tuple[int, int, int]:
        """x, y and side (px)."""
        return self.x, self.y, self.side

    def cut(self, frame: FramePixels, size_px: int) -> NDArray[np.uint8]:
        """Cut the crop out of a frame: RGB uint8 [size_px, size_px, 3], not resampled where the sizes agree."""
        import cv2

        if self.side > size_px:
            return frame.square(self.x, self.y, self.side, size_px)
        pixels = frame.region(self.x, self.y, self.side, self.side)
        if self.side == size_px:
            return np.ascontiguousarray(pixels)
        return np.asarray(cv2.resize(pixels, (size_px, size_px), interpolation=cv2.INTER_CUBIC), np.uint8)

    def to_crop_px(self, row: NDArray[np.float32], size_px: int) -> NDArray[np.float32]:
        """Return a face's features [F] with its box and points in pixels of the crop."""
        out = row.copy()
        for places in (slice(0, 4), POINTS):
            corner = np.resize(np.array([self.x, self.y], np.float32), out[places].shape)
            out[places] = (out[places] - corner) * np.float32(size_px / self.side)
        return out

    def holds(self, boxes: NDArray[np.float32], slack: float = 0.02) -> NDArray[np.bool_]:
        """Return whether whole boxes [T, 4] are inside, bool [T]; False for a missing face (NaN)."""
        spare = slack * self.side
        low = (boxes[:, 0] >= self.x - spare) & (boxes[:, 1] >= self.y - spare)
        high = (boxes[:, 2] <= self.x + self.side + spare) & (boxes[:, 3] <= self.y + self.side + spare)
        return low & high

    def shows(self, boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether the centres of boxes [T, 4] are inside, bool [T]."""
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        return (x > self.x) & (x < self.x + self.side) & (y > self.y) & (y < self.y + self.side)

    def fraction_inside(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the fraction of each box [T, 4] that is inside, float32 [T] in 0..1; 0 for a missing box (NaN)."""
        low = np.maximum(boxes[:, :2], (self.x, self.y))
        high = np.minimum(boxes[:, 2:], (self.x + self.side, self.y + self.side))
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        whole = np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1e-6)
        return np.nan_to_num(np.asarray(shared / whole, np.float32))


def plan_crop(
    boxes: NDArray[np.float32],
    others: list[NDArray[np.float32]],
    size: tuple[int, int],
    config: CurationConfig,
) -> Crop:
    """Return the square crop of a person.

    Args:
        boxes: the person's face boxes [T, 4]; rows may be NaN.
        others: face boxes of the other people in the same frames.
        size: width and height of the source (px).
        config: size of crops in face heights.
    """
    width, height = size
    seen = boxes[~np.isnan(boxes[:, 0])]
    face = float(np.percentile(seen[:, 3] - seen[:, 1], 80))
    if width == height and not others:
        low, high = config.whole_face_ratio
        whole = Crop(x=0, y=0, side=width)
        if low <= face / height <= high and whole.holds(seen).mean() > 0.98:
            return whole
    side = min(config.crop_faces * face, float(min(size)))
    smallest = min(MIN_FACE_HEIGHTS * face, side)
    middle = float(np.median(seen[:, 0] + seen[:, 2])) / 2, float(np.median(seen[:, 1] + seen[:, 3])) / 2
    crop = _square_around(middle, side, size, config.size_px)
    while side > smallest and any(crop.shows(box).mean() > 0.02 for box in others):
        side = max(side * 0.93, smallest)
        crop = _square_around(middle, side, size, config.size_px)
    return crop


def _square_around(middle: tuple[float, float], side: float, size: tuple[int, int], size_px: int) -> Crop:
    """Return the square around the middle (x, y) of a face, inside a frame of a size (width, height).

    Its corners are aligned to pixels of the subsampled colour planes at every halving on its way to `size_px`.
    """
    grid = 2 << halvings_to(side, size_px)
    pixels = max(int(side) // grid * grid, 2)
    corner = middle[0] - pixels / 2, middle[1] - pixels * _FACE_HEIGHT_IN_CROP
    left, top = (
        min(max(round(at / grid), 0), (most - pixels) // grid) * grid for at, most in zip(corner, size, strict=True)
    )
    return Crop(x=left, y=top, side=pixels)


def crop_around(row: NDArray[np.float32], faces: float, size: tuple[int, int], size_px: int) -> Crop:
    """Return the square of `faces` face heights around one face.

    Args:
        row: the face's features (see faces.FEATURES).
        faces: side of the square in face heights.
        size: width and height of the source (px).
        size_px: side that the crop will be scaled to.
    """
    x0, y0, x1, y1 = map(float, row[:4])
    return _square_around(((x0 + x1) / 2, (y0 + y1) / 2), min(faces * (y1 - y0), *map(float, size)), size, size_px)


def others_in(tracks: list[Track], index: int, start: int, stop: int) -> list[NDArray[np.float32]]:
    """Return face boxes [frames, 4] of everybody but track `index` in frames start..stop; NaN where not seen."""
    found = []
    for i, track in enumerate(tracks):
        if i == index or track.start >= stop or track.stop <= start:
            continue
        boxes = np.full((stop - start, 4), np.nan, np.float32)
        a, b = max(start, track.start), min(stop, track.stop)
        boxes[a - start : b - start] = track.values[a - track.start : b - track.start, :4]
        found.append(boxes)
    return found
