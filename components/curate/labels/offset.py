"""Estimate the audio-video offset of a source: regress mouth opening on the audio spectrum at every lag.

The result decides whether a recording is rejected or its audio shifted. The regression is fitted to the source itself,
so it holds for any person, language and microphone, and needs about ten seconds of talking: on four-second clips with
audio shifted by 8 to 15 frames it was confident about 6 %. Whether the lips of one short clip match its audio is a
different question, which scorers/sync.py answers with a pre-trained map.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.labels.states import moving_spread
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME

MAX_LAG = 15
"""Frames searched in either direction."""
_BANDS = 8
_BAND_HZ = (100.0, 8000.0)
_DELAYS = (-1, 0, 1)
_SLOW = 49
"""Window in frames of the high-pass filter that removes slow changes (loudness of a phrase, head pose)."""
_RIDGE = 0.1
_TALK_SPREAD = 0.03
_FULL_TALK = 240.0
"""Frames of a moving mouth above which the confidence is not reduced."""
_MIN_TALK = 24.0
"""Frames of a moving mouth below which the offset is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offset:
    """Offset between a source's audio and its video."""

    frames: int
    """Frames by which the audio is late (early if negative)."""
    confidence: float
    """Explained variance of the mouth's movement minus that of the best lag elsewhere, 0..1; 0 = unknown."""


UNKNOWN = Offset(frames=0, confidence=0.0)


def mel_bands(track: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return the energy of eight mel bands around each frame, compressed by the fourth root, float32 [T, 8].

    Args:
        track: int16 [T * 1000] at 24 kHz.
    """
    frames, half = len(track) // SAMPLES_PER_FRAME, SAMPLES_PER_FRAME
    window = np.hanning(2 * half).astype(np.float32) / 32768
    hertz = np.fft.rfftfreq(2 * half, 1 / AUDIO_RATE)
    mel = 2595 * np.log10(1 + hertz / 700)
    low, high = (2595 * np.log10(1 + edge / 700) for edge in _BAND_HZ)
    edges = np.searchsorted(mel, np.linspace(low, high, _BANDS + 1))
    out = np.empty((frames, _BANDS), np.float32)
    for start in range(0, frames, 512):  # a long source must not need all spectra at once
        part = track[max(start - 1, 0) * half : min(start + 512, frames) * half]
        part = part if start else np.pad(part, (half, 0))
        views = np.lib.stride_tricks.sliding_window_view(part, 2 * half)[::half]
        power = np.abs(np.fft.rfft(views * window, axis=1)) ** 2
        out[start : start + 512] = np.add.reduceat(power, edges, axis=1)[:, :_BANDS] ** 0.25
    return out


def find_av_offset(people: list[tuple[int, NDArray[np.float32]]], bands: NDArray[np.float32]) -> Offset:
    """Estimate the offset of a source from the mouths of all its people.

    At each lag the mouth opening is predicted from the bands by least squares. Only frames with a moving mouth count,
    so pauses and listening are ignored. The lag that explains most variance is the offset.

    Args:
        people: (first frame, mouth gap in eye distances [T]) of each person; NaN where the face is not detected.
        bands: `mel_bands` of the whole source.

    Returns:
        The offset, or UNKNOWN if there is too little movement or audio.
    """
    if not np.any(bands):
        return UNKNOWN
    audio = high_pass((bands - bands.mean(axis=0)) / (bands.std(axis=0) + 1e-6))
    explained = np.zeros(2 * MAX_LAG + 1)
    total = 0.0
    for start, gap in people:
        curve, weight = _explained_variance(start, gap, audio)
        explained, total = explained + weight * curve, total + weight
    if total < _MIN_TALK:
        return UNKNOWN
    explained /= total
    best = int(explained.argmax())
    elsewhere = np.abs(np.arange(len(explained)) - best) > 2
    margin = max(float(explained[best] - explained[elsewhere].max()), 0.0)
    # A few seconds can be explained by chance at some lag.
    return Offset(frames=best - MAX_LAG, confidence=margin * min(total / _FULL_TALK, 1.0))


def shift_audio(track: NDArray[np.int16], frames: int) -> NDArray[np.int16]:
    """Advance audio that is `frames` late: int16 [T * 1000] of the same length, padded with silence."""
    by = frames * SAMPLES_PER_FRAME
    out = np.zeros_like(track)
    if by >= 0:
        out[: len(track) - by] = track[by:]
    else:
        out[-by:] = track[:by]
    return out


def _explained_variance(
    start: int, gap: NDArray[np.float32], audio: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the explained variance ratio of one mouth by lag [2 * MAX_LAG + 1], and its frames of talking."""
    reach = MAX_LAG + max(_DELAYS)
    known = ~np.isnan(gap)
    if not known.any():
        return np.zeros(2 * MAX_LAG + 1), 0.0
    mouth = high_pass(np.where(known, gap, np.nanmean(gap)).astype(np.float64)[:, None])[:, 0]
    weight = np.clip(np.nan_to_num(moving_spread(gap, 9)) / _TALK_SPREAD, 0, 1) * known
    at = start + np.arange(len(gap))
    weight *= (at >= reach) & (at < len(audio) - reach)  # the same frames at every lag
    mass = float(weight.sum())
    if mass < 1.0:
        return np.zeros(2 * MAX_LAG + 1), 0.0
    mouth -= (weight * mouth).sum() / mass
    variance = max(float((weight * mouth**2).sum()), 1e-12)
    curve = []
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        # Audio that is `lag` late belongs to the mouth `lag` frames earlier.
        table = np.concatenate([audio[np.clip(at + lag + d, 0, len(audio) - 1)] for d in _DELAYS], axis=1)
        table = table - (weight[:, None] * table).sum(axis=0) / mass
        square, cross = (table * weight[:, None]).T @ table, (table * weight[:, None]).T @ mouth
        ridge = (_RIDGE * np.trace(square) / len(square) + 1e-9) * np.eye(len(square))
        factors = np.linalg.solve(square + ridge, cross)
        curve.append(float(2 * cross @ factors - factors @ square @ factors) / variance)
    return np.array(curve), mass


def high_pass(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Subtract the slow changes from columns [T, C]; float64 [T, C]."""
    kernel = np.hanning(_SLOW + 2)[1:-1]
    kernel /= kernel.sum()
    padded = np.pad(values.astype(np.float64), ((_SLOW // 2, _SLOW // 2), (0, 0)), mode="edge")
    slow = np.stack([np.convolve(column, kernel, mode="valid") for column in padded.T], axis=1)
    return np.asarray(values - slow, np.float64)
