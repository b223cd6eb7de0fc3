"""Prosody: pitch by autocorrelation, syllable rate by energy peaks. Needs no weights."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS

_WINDOW = 1200
"""Samples (50 ms): two and a half periods of the lowest pitch."""
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 400.0
_VOICED = 0.55
_HOP = AUDIO_RATE // 100
_SMOOTH = 9
"""Energy windows of 10 ms averaged before syllables are counted."""
_RISE_DB = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Prosody:
    """Prosody of a voice over some frames."""

    loudness_db: float
    """75th percentile of the frames' loudness, in dBFS."""
    pitch_hz: float
    """Median pitch of the voiced frames; NaN without any."""
    pitch_spread: float
    """Distance of the 10th and 90th percentile of the pitch in semitones; NaN with fewer than 6 voiced frames."""
    syllables_per_s: float
    """Energy peaks per second."""


def prosody(audio: NDArray[np.int16], loudness_db: NDArray[np.float32], spoken: NDArray[np.bool_]) -> Prosody:
    """Measure the prosody of the spoken frames.

    Args:
        audio: int16 [T * 1000] at 24 kHz.
        loudness_db: dBFS [T].
        spoken: frames to measure, bool [T], at least one.
    """
    pitch = pitch_hz(audio, spoken)
    voiced = pitch[~np.isnan(pitch)]
    low, high = np.percentile(voiced, (10, 90)) if len(voiced) >= 6 else (math.nan, math.nan)
    return Prosody(
        loudness_db=float(np.percentile(loudness_db[spoken], 75)),
        pitch_hz=float(np.median(voiced)) if len(voiced) else math.nan,
        pitch_spread=float(12 * np.log2(high / low)),
        syllables_per_s=syllables(audio, spoken) * VIDEO_FPS / float(spoken.sum()),
    )


def pitch_hz(
    audio: NDArray[np.int16], spoken: NDArray[np.bool_], highest_hz: float = _HIGHEST_HZ
) -> NDArray[np.float64]:
    """Return the fundamental frequency per frame, float64 [T]; NaN where the frame is not spoken or not voiced.

    The lag of the highest normalised autocorrelation between 60 Hz and `highest_hz`, with the window's own
    autocorrelation divided out (Boersma 1993).
    """
    found = np.full(len(spoken), np.nan)
    at = np.flatnonzero(spoken)
    if not len(at):
        return found
    half = _WINDOW // 2
    padded = np.pad(audio.astype(np.float64), half)
    centres = at * SAMPLES_PER_FRAME + SAMPLES_PER_FRAME // 2
    blocks = np.stack([padded[centre : centre + _WINDOW] for centre in centres])
    window = np.hanning(_WINDOW)
    blocks = (blocks - blocks.mean(axis=1, keepdims=True)) * window
    size = 1 << (2 * _WINDOW - 1).bit_length()

    def correlate(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.fft.irfft(np.abs(np.fft.rfft(values, size)) ** 2, size)[..., : _WINDOW // 2]

    own = correlate(window)
    both = correlate(blocks)
    strength = both / np.maximum(both[:, :1], 1e-9) / (own / own[0])
    first, last = int(AUDIO_RATE / highest_hz), int(AUDIO_RATE / _LOWEST_HZ)
    region = strength[:, first : last + 1]
    # The first lag near the highest strength: its multiples are as strong, an octave lower.
    lag = first + np.argmax(region >= region.max(axis=1, keepdims=True) - 0.02, axis=1)
    lag = np.array([_climb_to_peak(row, start) for row, start in zip(strength, lag, strict=True)])
    sure = (strength[np.arange(len(lag)), lag] >= _VOICED) & (both[:, 0] > 1e3)
    found[at[sure]] = AUDIO_RATE / lag[sure]
    return found


def _climb_to_peak(strength: NDArray[np.float64], lag: int) -> int:
    """Climb from a lag to the top of its peak."""
    while lag + 1 < len(strength) and strength[lag + 1] > strength[lag]:
        lag += 1
    return lag


def syllables(audio: NDArray[np.int16], spoken: NDArray[np.bool_]) -> int:
    """Count peaks of the smoothed energy that rise 2 dB above the neighbouring dips, in spoken frames."""
    from scipy.signal import find_peaks

    blocks = audio[: len(audio) // _HOP * _HOP].reshape(-1, _HOP).astype(np.float64)
    energy = np.convolve(np.mean(blocks**2, axis=1), np.ones(_SMOOTH) / _SMOOTH, mode="same")
    level = 10 * np.log10(energy + 1.0)
    peaks, _ = find_peaks(level, prominence=_RISE_DB, distance=8)
    frames = np.minimum(peaks * _HOP // SAMPLES_PER_FRAME, len(spoken) - 1)
    loud = level[peaks] > level.max() - 30 if len(peaks) else np.zeros(0, bool)
    return int(np.sum(spoken[frames] & loud))
