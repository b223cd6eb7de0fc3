"""Find recordings that are the two cameras of one conversation, and the offset between their clocks."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.video.faces import Track
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS

COMPARED_S = 60
"""Seconds from the start of a recording that are compared with others."""
_MIN_PEAK = 8.0
"""Smallest peak of the cross-correlation of two microphones, in robust deviations from all other offsets."""
_MIN_COMMON_S = 4
_MAX_DRIFT_FRAMES = 2
"""Largest difference of the offsets of both halves; recordings that only share a jingle differ by more."""
_SAME_MOUTH = 0.6
"""Correlation of two mouth gaps above which they are the same mouth: a copy, or one person from two angles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """The features by which two recordings are compared."""

    track: NDArray[np.int16]
    """Audio, int16 [frames * 1000]."""
    gap: NDArray[np.float32] | None = None
    """Mouth gap of the only person in the video [frames], NaN where the face is not detected; None without video."""


def camera_offset(own: NDArray[np.int16], other: NDArray[np.int16], max_s: float) -> int | None:
    """Return the offset in samples between two recordings of one room, or None if they do not match."""
    offset, strength = camera_match(own, other, max_s)
    return offset if strength > _MIN_PEAK else None


def camera_match(own: NDArray[np.int16], other: NDArray[np.int16], max_s: float) -> tuple[int, float]:
    """Return the best offset in samples between two recordings and the height of its peak in robust deviations.

    Each microphone records both people, so the phase-weighted cross-correlation has a sharp peak at the offset.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    if not np.any(own) or not np.any(other):
        return 0, 0.0
    size = next_fast_len(len(own) + len(other))
    cross = np.conj(rfft(own.astype(np.float32), size)) * rfft(other.astype(np.float32), size)
    cross /= np.maximum(np.abs(cross), 1e-6 * float(np.abs(cross).max())) ** 0.8
    match = irfft(cross, size)
    reach = min(int(max_s * AUDIO_RATE), size // 2 - 1)
    near = np.concatenate([match[-reach:], match[: reach + 1]])
    peak = int(near.argmax())
    spread = float(np.median(np.abs(near))) / 0.6745 + 1e-12
    return peak - reach, float(near[peak]) / spread


def find_cameras(recordings: Sequence[Recording], max_s: float) -> list[tuple[int, int]]:
    """Return index pairs of recordings that are the two cameras of one conversation.

    A pair has the same room in its audio and two different mouths in its video. The strongest matches are taken first
    and every recording is used at most once. Cost is quadratic in the number of recordings: use it for tens of them.
    """
    found = []
    for a, b in itertools.combinations(range(len(recordings)), 2):
        strength = _pair_strength(recordings[a], recordings[b], max_s)
        if strength > _MIN_PEAK:
            found.append((strength, a, b))
    pairs: list[tuple[int, int]] = []
    for _, a, b in sorted(found, key=lambda item: (-item[0], item[1], item[2])):
        if not any(a in pair or b in pair for pair in pairs):
            pairs.append((a, b))
    return sorted(pairs)


def _pair_strength(one: Recording, other: Recording, max_s: float) -> float:
    """Return the peak height of two recordings in the weaker of their halves, 0 if they are not a pair."""
    common = min(len(one.track), len(other.track), COMPARED_S * AUDIO_RATE)
    if common < _MIN_COMMON_S * AUDIO_RATE:
        return 0.0
    halves = slice(0, common // 2), slice(common // 2, common)
    offset, first = camera_match(one.track[halves[0]], other.track[halves[0]], max_s)
    if first <= _MIN_PEAK:
        return 0.0
    later, second = camera_match(one.track[halves[1]], other.track[halves[1]], max_s)
    if abs(later - offset) > _MAX_DRIFT_FRAMES * SAMPLES_PER_FRAME or _one_mouth(one.gap, other.gap, offset):
        return 0.0
    return min(first, second)


def _one_mouth(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None, offset: int) -> bool:
    """Return whether two mouths open and close together, which means that both cameras show the same person."""
    if one is None or other is None:
        return False
    theirs = shift_frames(other, round(offset / SAMPLES_PER_FRAME), len(one), float("nan"))
    known = ~(np.isnan(one) | np.isnan(theirs))
    if known.sum() < 2 * VIDEO_FPS or one[known].std() < 1e-6 or theirs[known].std() < 1e-6:
        return False
    return bool(np.corrcoef(one[known], theirs[known])[0, 1] > _SAME_MOUTH)


def shift_frames(values: NDArray[np.float32], offset: int, frames: int, fill: float) -> NDArray[np.float32]:
    """Shift another camera's values onto this one's frames: out[f] = values[f + offset], `fill` outside."""
    at = np.arange(frames) + offset
    inside = (at >= 0) & (at < len(values))
    out = np.full(frames, fill, np.float32)
    out[inside] = values[at[inside]]
    return out


def gap_on_timeline(track: Track, frames: int) -> NDArray[np.float32]:
    """Return a person's mouth gap on all frames of the source, NaN where the face is not detected."""
    out = np.full(frames, np.nan, np.float32)
    out[track.start : track.stop] = track.column("gap")
    return out
