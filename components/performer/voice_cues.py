"""Cues of a voice to which a listener reacts: phrases, loudness and relative pitch, per video frame.

The pitch tracker here is coarse (6 kHz, 60 ms windows, semitones relative to the speaker) and drives the rendered
motion; curation measures pitch in Hz with its own tracker (`components/curate/captions/prosody.py`).
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.performer.visemes import loudness
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS

_BLOCK: Final = 240  # 10 ms
_AUDIBLE: Final = 0.008  # RMS of full scale above which a block counts as speech, about -42 dBFS
_LAGS: Final = slice(15, 86)  # of 6 kHz samples: 400 Hz to 70 Hz
_MAX_SEMITONES: Final = 9.0
PAUSE_S: Final = 0.2
"""Shorter silences belong to the phrase around them (s)."""


class Phrase(NamedTuple):
    """A stretch of speech without a pause."""

    start_sample: int
    end_sample: int
    level: float
    """RMS of its samples, full scale 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VoiceCues:
    """Cues of one voice; frame f describes the time of sample 1000 f."""

    level: NDArray[np.float32]
    """[T] RMS, full scale 1."""
    pitch: NDArray[np.float32]
    """[T] semitones above the voice's median pitch; 0 where unvoiced."""
    speech: NDArray[np.bool_]
    """[T] whether the frame is inside a phrase."""
    phrases: tuple[Phrase, ...]
    """Phrases in order."""


def measure_cues(pcm: NDArray[np.int16], frames: int) -> VoiceCues:
    """Measure one person's speech, int16 [samples] at 24 kHz, over `frames` video frames."""
    level = loudness(pcm, frames)
    phrases = _phrases(pcm)
    speech = np.zeros(frames, np.bool_)
    for phrase in phrases:
        speech[-(-phrase.start_sample // SAMPLES_PER_FRAME) : phrase.end_sample // SAMPLES_PER_FRAME + 1] = True
    return VoiceCues(level=level, pitch=_relative_pitch(pcm, frames, level), speech=speech, phrases=phrases)


def smooth(values: NDArray[np.floating], seconds: float) -> NDArray[np.float32]:
    """Smooth a curve [T] with a causal one-pole low-pass: a reaction never precedes its cause."""
    decay = float(np.exp(-1.0 / (seconds * VIDEO_FPS)))
    out = np.empty(len(values), np.float32)
    state = 0.0
    for index, value in enumerate(values.tolist()):
        state = decay * state + (1.0 - decay) * value
        out[index] = state
    return out


def delay(values: NDArray[np.floating], seconds: float) -> NDArray[np.float32]:
    """Delay a curve [T] by `seconds`, rounded to frames; it starts with zeros."""
    shift = round(seconds * VIDEO_FPS)
    return np.concatenate([np.zeros(shift), values])[: len(values)].astype(np.float32)


def _phrases(pcm: NDArray[np.int16]) -> tuple[Phrase, ...]:
    wave = pcm.astype(np.float32) / 32768.0
    power = np.mean(np.pad(wave, (0, -len(wave) % _BLOCK)).reshape(-1, _BLOCK) ** 2, axis=1)
    active = np.flatnonzero(np.sqrt(power) > _AUDIBLE)
    if not len(active):
        return ()
    breaks = np.flatnonzero(np.diff(active) > PAUSE_S * AUDIO_RATE / _BLOCK)
    firsts = active[np.concatenate([[0], breaks + 1])]
    lasts = active[np.concatenate([breaks, [len(active) - 1]])]
    return tuple(
        Phrase(int(a) * _BLOCK, min((int(b) + 1) * _BLOCK, len(pcm)), float(np.sqrt(power[a : b + 1].mean())))
        for a, b in zip(firsts, lasts, strict=True)
    )


def _relative_pitch(pcm: NDArray[np.int16], frames: int, level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Track pitch by autocorrelation; return semitones relative to the median, float32 [frames]."""
    decimated = np.pad(pcm, (0, -len(pcm) % 4)).reshape(-1, 4).mean(axis=1) / 32768.0
    half, size = 180, 1024
    padded = np.pad(decimated, (half, half + frames * SAMPLES_PER_FRAME // 4))
    starts = np.arange(frames) * (SAMPLES_PER_FRAME // 4)
    windows = padded[starts[:, None] + np.arange(2 * half)] * np.hanning(2 * half)
    spectrum = np.abs(np.fft.rfft(windows, size, axis=1)) ** 2
    correlation = np.fft.irfft(spectrum, axis=1)
    # Multiples of the period correlate nearly as well, so longer lags are penalised.
    correlation[:, _LAGS] *= np.linspace(1.0, 0.8, _LAGS.stop - _LAGS.start)
    best = correlation[:, _LAGS].argmax(axis=1) + _LAGS.start
    strength = correlation[np.arange(frames), best] / np.maximum(correlation[:, 0], 1e-9)
    voiced = (strength > 0.3) & (level > 2 * _AUDIBLE)
    if not voiced.any():
        return np.zeros(frames, np.float32)
    semitones = 12.0 * np.log2(6000.0 / best)
    relative = semitones - np.median(semitones[voiced])
    usable = voiced & (np.abs(relative) < _MAX_SEMITONES)  # further away is an octave error
    padded_pitch = np.pad(np.where(usable, relative, 0.0), 1)
    return np.asarray(np.median([padded_pitch[:-2], padded_pitch[1:-1], padded_pitch[2:]], axis=0), np.float32)
