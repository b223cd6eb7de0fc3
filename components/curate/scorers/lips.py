"""How far a mouth is open, guessed from sound alone: a linear map of the spectrum around each frame.

Fitted by `fit` on performers of the training bank; what it guesses is compared with the lips that are seen.
"""

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, STATES
from lpm_model.digests import file_digest
from lpm_model.mel import mel_filters

WEIGHTS = Path(__file__).with_name("lips.safetensors")
_BANDS, _WINDOW = 24, 1024
_BEFORE, _AFTER = 2, 6
"""Spectra of half frames before and after a frame that its guess sees."""
_RIDGE = 30.0


@functools.cache
def digest() -> str:
    """Of the shipped weights."""
    return file_digest(WEIGHTS)


def guess_opening(track: NDArray[np.int16]) -> NDArray[np.float32]:
    """Mouth opening by frame, float32 [frames], in no unit; of int16 [frames * 1000]."""
    weights = _weights()
    return np.asarray((_features(track) - weights["mean"]) @ weights["map"], np.float32)


@functools.cache
def _weights() -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    weights: dict[str, NDArray[np.float32]] = load_file(WEIGHTS)
    return weights


def _features(track: NDArray[np.int16]) -> NDArray[np.float32]:
    """Log spectra around each frame without the clip's mean, float32 [frames, 9 * 24]."""
    frames, hop = len(track) // SAMPLES_PER_FRAME, SAMPLES_PER_FRAME // 2
    padded = np.pad(track.astype(np.float32) / 32768, (_WINDOW // 2, _WINDOW))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::hop][: 2 * frames]
    power = np.abs(np.fft.rfft(pieces * np.hanning(_WINDOW))) ** 2
    bands = np.log(power @ mel_filters(_BANDS, AUDIO_RATE, _WINDOW, 100.0, 8000.0) + 1e-4)
    around = np.pad(bands - bands.mean(axis=0), ((2 * _BEFORE, 2 * _AFTER), (0, 0)), mode="edge")
    starts = range(0, 2 * (_BEFORE + _AFTER) + 1, 2)
    return np.concatenate([around[at : at + 2 * frames : 2] for at in starts], axis=1).astype(np.float32)


def fit(conversations: int, seconds: float = 25.0, seed: int = 7) -> dict[str, NDArray[np.float32]]:
    """Weights (`map` [216], `mean` [216]) by ridge regression on the sound and the jaws of performed conversations."""
    from components.ingest.performer.compose import conversation
    from components.ingest.performer.config import PerformerConfig
    from components.ingest.performer.tracks import ARKIT_INDEX

    seen, wanted = [], []
    for index in range(conversations):
        config = PerformerConfig(conversations=conversations, seconds_per_conversation=seconds, seed=seed)
        sides, performances = conversation(config, index)
        for own, other in (("a", "b"), ("b", "a")):
            mixed = sides[own].pcm.astype(np.float32) + 0.5 * sides[other].pcm
            speaks = performances[own].state == STATES["speak"]
            jaw = performances[own].tracks.blendshapes[:, ARKIT_INDEX["jawOpen"]][speaks]
            seen.append(_features(np.clip(mixed, -32768, 32767).astype(np.int16))[speaks])
            wanted.append(jaw - jaw.mean())
    features, target = np.concatenate(seen), np.concatenate(wanted)
    mean = features.mean(axis=0)
    centred = (features - mean).astype(np.float64)
    solved = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(centred.shape[1]), centred.T @ target)
    return {"map": solved.astype(np.float32), "mean": mean.astype(np.float32)}
