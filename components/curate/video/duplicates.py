"""Near-duplicates across sources: the same shot again, re-encoded, cropped, framed, brightened or renamed.

Shots with similar frames (64-bit difference hash, majority over the shot) are aligned where their motion and loudness
correlate from frame to frame; only a recording repeats both, so two takes on one set are no duplicates. A duplicate
with other audio, or at another speed, is not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.video.image_quality import inside_bars

EVERY = 4
"""Frames between two perceptual hashes."""
_MAX_HAMMING_BITS = 8
"""Largest Hamming distance, of 64 bits, of similar frames; different people in one studio differ by more."""
_MIN_INSIDE = 0.25
"""Smallest fraction of a side between black bars (portrait in landscape has 0.31); less is a dark frame."""
_SAME_AUDIO, _SAME_MOVEMENT, _SAME_SILENT = 0.97, 0.5, 0.95
"""Minimum correlation of a duplicate: loudness, motion in addition to it, and motion alone in silent videos.

Blinks alone correlate at some offset, so motion needs a high correlation only where there is no audio.
"""
_MIN_FRAMES, _MIN_OVERLAP_RATIO = 36, 0.5
"""Minimum overlap of two shots: in frames, and as a fraction of the shorter one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFingerprint:
    """The fields of a source's analysis by which duplicates are found."""

    source_id: str
    """Name of the source."""
    shots: list[tuple[int, int]]
    """First frame and frame after the last."""
    hashes: NDArray[np.uint64]
    """Perceptual hash of every EVERY-th frame."""
    change: NDArray[np.float32]
    """Mean absolute change from the previous frame, float32 [frames]."""
    loudness: NDArray[np.float32]
    """Loudness per frame in dBFS, float32 [frames]."""


def frame_hash(grey: NDArray[np.uint8]) -> int:
    """Return the 64-bit difference hash of a grey image [H, W]: which of 8 x 8 cells are brighter than their left ones.

    Black bars are cropped away, unless too little would be left.
    """
    import cv2

    # Where a bar ends, one line of the downscaled image is a mix of both.
    rows, columns = (
        slice(one.start + (one.start > 0), one.stop - (one.stop < side))
        for one, side in zip(inside_bars(grey), grey.shape, strict=True)
    )
    inside = grey[rows, columns]
    whole = min(inside.shape[0] / grey.shape[0], inside.shape[1] / grey.shape[1]) < _MIN_INSIDE
    tiny = cv2.resize(grey if whole else inside, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(tiny[:, 1:] > tiny[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def find_copies(fingerprints: Sequence[SourceFingerprint]) -> dict[str, list[tuple[int, int]]]:
    """Return the spans of frames (first, after the last) that duplicate an earlier source of the list, by source id."""
    places = [(n, shot) for n, one in enumerate(fingerprints) for shot in one.shots if shot[1] - shot[0] >= _MIN_FRAMES]
    hashes = np.array([_majority_hash(fingerprints[n].hashes, shot) for n, shot in places], np.uint64)
    copies: dict[str, list[tuple[int, int]]] = {}
    for later, (n, shot) in enumerate(places):
        similar = np.flatnonzero(np.bitwise_count(hashes[:later] ^ hashes[later]) <= _MAX_HAMMING_BITS)
        for earlier in similar:
            m, other = places[earlier]
            if m != n and (span := _duplicated_span(fingerprints[m], other, fingerprints[n], shot)):
                copies.setdefault(fingerprints[n].source_id, []).append(span)
    return copies


def frames_in(spans: Sequence[tuple[int, int]], frames: int) -> NDArray[np.bool_]:
    """Return which frames are in any of the spans, bool [frames]."""
    inside = np.zeros(frames, bool)
    for start, stop in spans:
        inside[start:stop] = True
    return inside


def _majority_hash(hashes: NDArray[np.uint64], shot: tuple[int, int]) -> np.uint64:
    """Return the majority of each bit over a shot."""
    inside = hashes[-(-shot[0] // EVERY) : -(-shot[1] // EVERY)]
    bits = np.unpackbits(inside.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    return np.uint64(int.from_bytes(np.packbits(bits.mean(axis=0) > 0.5).tobytes(), "big"))


def _duplicated_span(
    first: SourceFingerprint, shot: tuple[int, int], second: SourceFingerprint, other: tuple[int, int]
) -> tuple[int, int] | None:
    """Return the frames of the second source's shot that duplicate the first one's; None where they do not match."""
    pairs = []
    for name, floor in (("change", 0.0), ("loudness", -60.0)):
        a, b = getattr(first, name)[slice(*shot)], getattr(second, name)[slice(*other)]
        pairs.append([np.maximum(np.nan_to_num(x.astype(np.float64), nan=floor), floor) for x in (a, b)])
    pairs[0] = [np.log1p(values) for values in pairs[0]]
    shortest = max(_MIN_FRAMES, round(_MIN_OVERLAP_RATIO * min(shot[1] - shot[0], other[1] - other[0])))
    motion, audio = (_correlations(a, b, shortest) for a, b in pairs)
    silent = audio.max() < 0
    same = motion >= _SAME_SILENT if silent else (audio >= _SAME_AUDIO) & (motion >= _SAME_MOVEMENT)
    if not same.any():
        return None
    at = int(np.where(same, motion + audio, -2.0).argmax())
    lag = at - (other[1] - other[0] - 1)  # frame f of the second shot is frame f + lag of the first
    start, stop = max(0, -lag), min(other[1] - other[0], shot[1] - shot[0] - lag)
    return other[0] + start, other[0] + stop


def _correlations(a: NDArray[np.float64], b: NDArray[np.float64], shortest: int) -> NDArray[np.float64]:
    """Return the Pearson correlation of a[f + lag] and b[f] where they overlap, for lag = 1 - len(b) .. len(a) - 1.

    -1 where fewer than `shortest` frames overlap or one of the two is constant.
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
