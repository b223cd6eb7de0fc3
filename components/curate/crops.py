"""Square one-person crops: one place a clip, the same for all clips of a person where the head stays inside."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.config import CurationConfig
from components.curate.faces import POINTS, Track
from components.curate.picture import Picture

_FACE_HEIGHT_IN_CROP = 0.46
"""The face's centre is put a little above the middle: shoulders below."""
_SMALLEST = 1.4
"""A crop is never tighter than so many face heights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """A square of source pixels."""

    x: int
    """Left edge."""
    y: int
    """Upper edge."""
    side: int
    """Width and height."""

    def cut(self, picture: Picture, size_px: int) -> NDArray[np.uint8]:
        """The crop of a picture as RGB [size_px, size_px, 3]; untouched pixels where the sizes agree."""
        import cv2

        if self.side > size_px:
            return picture.square(self.x, self.y, self.side, size_px)
        part = picture.part(self.x, self.y, self.side, self.side)
        if self.side == size_px:
            return np.ascontiguousarray(part)
        return np.asarray(cv2.resize(part, (size_px, size_px), interpolation=cv2.INTER_CUBIC), np.uint8)

    def moved(self, row: NDArray[np.float32], size_px: int) -> NDArray[np.float32]:
        """A face's features [F] with its box and points in pixels of the cut picture."""
        out = row.copy()
        for places in (slice(0, 4), POINTS):
            corner = np.resize(np.array([self.x, self.y], np.float32), out[places].shape)
            out[places] = (out[places] - corner) * np.float32(size_px / self.side)
        return out

    def holds(self, boxes: NDArray[np.float32], slack: float = 0.02) -> NDArray[np.bool_]:
        """Whether whole boxes [T, 4] lie inside, bool [T]; a missing face (NaN) does not."""
        spare = slack * self.side
        low = (boxes[:, 0] >= self.x - spare) & (boxes[:, 1] >= self.y - spare)
        high = (boxes[:, 2] <= self.x + self.side + spare) & (boxes[:, 3] <= self.y + self.side + spare)
        return low & high

    def shows(self, boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether the centres of boxes [T, 4] lie inside, bool [T]."""
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        return (x > self.x) & (x < self.x + self.side) & (y > self.y) & (y < self.y + self.side)

    def share_inside(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """How much of each box [T, 4] lies inside, float32 [T] in 0..1; 0 where the box is missing (NaN)."""
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
    """The square for a person.

    Args:
        boxes: the person's face boxes [T, 4]; rows may be NaN.
        others: face boxes of the other people in the same frames.
        size: width and height of the source picture.
        config: how much room a face gets.
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
    smallest = min(_SMALLEST * face, side)
    crop = _place(seen, side, size)
    while side > smallest and any(crop.shows(box).mean() > 0.02 for box in others):
        side = max(side * 0.93, smallest)
        crop = _place(seen, side, size)
    return crop


def _place(seen: NDArray[np.float32], side: float, size: tuple[int, int]) -> Crop:
    """Put a square around the middle of the person's places, inside the picture, between even pixels as colours are."""
    pixels = max(int(side) // 2 * 2, 2)
    x = float(np.median(seen[:, 0] + seen[:, 2])) / 2 - pixels / 2
    y = float(np.median(seen[:, 1] + seen[:, 3])) / 2 - pixels * _FACE_HEIGHT_IN_CROP
    left, top = (int(np.clip(round(at), 0, most - pixels)) // 2 * 2 for at, most in zip((x, y), size, strict=True))
    return Crop(x=left, y=top, side=pixels)


def others_in(tracks: list[Track], index: int, start: int, stop: int) -> list[NDArray[np.float32]]:
    """Face boxes [frames, 4] of everybody but `index` in the frames start..stop; NaN where not seen."""
    found = []
    for i, track in enumerate(tracks):
        if i == index or track.start >= stop or track.stop <= start:
            continue
        boxes = np.full((stop - start, 4), np.nan, np.float32)
        a, b = max(start, track.start), min(stop, track.stop)
        boxes[a - start : b - start] = track.values[a - track.start : b - track.start, :4]
        found.append(boxes)
    return found
