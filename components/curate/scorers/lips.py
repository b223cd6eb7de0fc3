"""Estimate mouth opening from audio alone: a linear map of the spectrum around each frame.

fit_lips.py fits the map to rendered conversations. The sync scorer compares the estimate with the observed lips.
"""

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME
from lpm_model.digests import file_digest
from lpm_model.encoders.mel import mel_filters

WEIGHTS = Path(__file__).with_name("lips.safetensors")
_BANDS, _WINDOW = 24, 1024
_BEFORE, _AFTER = 2, 6
"""Frames before and after a frame whose spectra the estimate uses."""


@functools.cache
def digest() -> str:
    """Return the digest of the shipped weights."""
    return file_digest(WEIGHTS)


def estimate_opening(track: NDArray[np.int16]) -> NDArray[np.float32]:
    """Estimate the mouth opening per frame, float32 [frames] without unit, from int16 [frames * 1000] at 24 kHz."""
    weights = _weights()
    return np.asarray((features(track) - weights["mean"]) @ weights["map"], np.float32)


@functools.cache
def _weights() -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    weights: dict[str, NDArray[np.float32]] = load_file(WEIGHTS)
    return weights


def features(track: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return log spectra around each frame minus the clip's mean, float32 [frames, 9 * 24]."""
    frames, hop = len(track) // SAMPLES_PER_FRAME, SAMPLES_PER_FRAME // 2
    padded = np.pad(track.astype(np.float32) / 32768, (_WINDOW // 2, _WINDOW))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::hop][: 2 * frames]
    power = np.abs(np.fft.rfft(pieces * np.hanning(_WINDOW))) ** 2
    bands = np.log(power @ mel_filters(_BANDS, AUDIO_RATE, _WINDOW, 100.0, 8000.0) + 1e-4)
    around = np.pad(bands - bands.mean(axis=0), ((2 * _BEFORE, 2 * _AFTER), (0, 0)), mode="edge")
    starts = range(0, 2 * (_BEFORE + _AFTER) + 1, 2)
    return np.concatenate([around[at : at + 2 * frames : 2] for at in starts], axis=1).astype(np.float32)
