"""Near-copies across sources: the same shot again, whoever encoded, cropped, framed, brightened or renamed it.

Shots that look alike (64-bit difference hash of their usual picture) are laid over each other where their movement and
loudness from frame to frame agree; only a recording repeats both, so two takes of one set are no copies. A copy with
another sound, or at another speed, is not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.video.image_quality import inside_bars

EVERY = 4
"""Frames between two perceptual hashes."""
_BITS = 8
"""Differing bits of 64 up to which two pictures look alike; other people in one studio differ by more."""
_MIN_INSIDE = 0.25
"""Share of a side that bars leave at least (an upright film in a wide one keeps 0.31); less is a dark picture."""
_SAME_SOUND, _SAME_MOVEMENT, _SAME_SILENT = 0.97, 0.5, 0.95
"""Correlation of loudness, and of movement beside it, that makes a copy; of movement alone where there is no sound.

Blinks alone make movement agree at some offset, hence little is asked of it where sound decides, and much elsewhere.
"""
_MIN_FRAMES, _MIN_SHARE = 36, 0.5
"""Two shots overlap by at least so many frames, and by this share of the shorter one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Print:
    """What is compared of one source."""

    source_id: str
    """Name of the source."""
    shots: list[tuple[int, int]]
    """First frame and frame after the last."""
    hashes: NDArray[np.uint64]
    """Perceptual hash of every EVERY-th frame."""
    change: NDArray[np.float32]
    """Change of the picture by frame."""
    loudness: NDArray[np.float32]
    """dB by frame."""


def picture_hash(grey: NDArray[np.uint8]) -> int:
    """64 bits: whether each of 8 x 8 places is brighter than its neighbour to the left (difference hash).

    Black bars around a picture [H, W] don't count, unless they leave too little of it.
    """
    import cv2

    # Where a bar ends, one line of the reduced picture is a mix of both.
    rows, columns = (
        slice(one.start + (one.start > 0), one.stop - (one.stop < side))
        for one, side in zip(inside_bars(grey), grey.shape, strict=True)
    )
    inside = grey[rows, columns]
    whole = min(inside.shape[0] / grey.shape[0], inside.shape[1] / grey.shape[1]) < _MIN_INSIDE
    tiny = cv2.resize(grey if whole else inside, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(tiny[:, 1:] > tiny[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def find_copies(prints: Sequence[Print]) -> dict[str, list[tuple[int, int]]]:
    """Spans of frames (first, after the last) that an earlier source of the list shows as well, by source id."""
    places = [(n, shot) for n, one in enumerate(prints) for shot in one.shots if shot[1] - shot[0] >= _MIN_FRAMES]
    looks = np.array([_usual(prints[n].hashes, shot) for n, shot in places], np.uint64)
    copies: dict[str, list[tuple[int, int]]] = {}
    for later, (n, shot) in enumerate(places):
        alike = np.flatnonzero(np.bitwise_count(looks[:later] ^ looks[later]) <= _BITS)
        for earlier in alike:
            m, other = places[earlier]
            if m != n and (span := _overlay(prints[m], other, prints[n], shot)):
                copies.setdefault(prints[n].source_id, []).append(span)
    return copies


def frames_in(spans: Sequence[tuple[int, int]], frames: int) -> NDArray[np.bool_]:
    """Which frames lie in any of the spans, bool [frames]."""
    inside = np.zeros(frames, bool)
    for start, stop in spans:
        inside[start:stop] = True
    return inside


def _usual(hashes: NDArray[np.uint64], shot: tuple[int, int]) -> np.uint64:
    """Majority of each bit over a shot."""
    part = hashes[-(-shot[0] // EVERY) : -(-shot[1] // EVERY)]
    bits = np.unpackbits(part.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    return np.uint64(int.from_bytes(np.packbits(bits.mean(axis=0) > 0.5).tobytes(), "big"))


def _overlay(first: Print, shot: tuple[int, int], second: Print, other: tuple[int, int]) -> tuple[int, int] | None:
    """Frames of the second source's shot that repeat the first one's, None where they do not agree."""
    pairs = []
    for name, floor in (("change", 0.0), ("loudness", -60.0)):
        a, b = getattr(first, name)[slice(*shot)], getattr(second, name)[slice(*other)]
        pairs.append([np.maximum(np.nan_to_num(x.astype(np.float64), nan=floor), floor) for x in (a, b)])
    pairs[0] = [np.log1p(values) for values in pairs[0]]
    shortest = max(_MIN_FRAMES, round(_MIN_SHARE * min(shot[1] - shot[0], other[1] - other[0])))
    moved, heard = (_correlations(a, b, shortest) for a, b in pairs)
    silent = heard.max() < 0
    same = moved >= _SAME_SILENT if silent else (heard >= _SAME_SOUND) & (moved >= _SAME_MOVEMENT)
    if not same.any():
        return None
    at = int(np.where(same, moved + heard, -2.0).argmax())
    lag = at - (other[1] - other[0] - 1)  # frame f of the second shot is frame f + lag of the first
    start, stop = max(0, -lag), min(other[1] - other[0], shot[1] - shot[0] - lag)
    return other[0] + start, other[0] + stop


def _correlations(a: NDArray[np.float64], b: NDArray[np.float64], shortest: int) -> NDArray[np.float64]:
    """Pearson correlation of a[f + lag] and b[f] where they overlap, for lag = 1 - len(b) .. len(a) - 1.

    -1 where fewer than `shortest` frames overlap or one of them stands still.
    """
    from scipy.signal import correlate

    ones_a, ones_b = np.ones_like(a), np.ones_like(b)
    count = np.maximum(correlate(ones_a, ones_b), 1.0)
    sum_a, sum_b = correlate(a, ones_b), correlate(ones_a, b)
    vary_a = np.maximum(correlate(a * a, ones_b) - sum_a**2 / count, 0)
    vary_b = np.maximum(correlate(ones_a, b * b) - sum_b**2 / count, 0)
    shared = correlate(a, b) - sum_a * sum_b / count
    known = (count >= shortest - 0.5) & (vary_a > 1e-3 * count) & (vary_b > 1e-3 * count)
    return np.where(known, shared / np.sqrt(np.maximum(vary_a * vary_b, 1e-12)), -1.0)
