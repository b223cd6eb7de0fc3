"""Voice activity (Silero VAD, run directly by onnxruntime) and loudness, one value per video frame."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from components.runtime.packaged_weights import PackagedWeights, onnx_session
from lpm_model.config import SAMPLES_PER_FRAME, VIDEO_FPS

_VAD_RATE = 16_000
_WINDOW = 512
_CONTEXT = 64
_BLOCK, _MARGIN = 3 * _WINDOW * 500, 48
"""Samples at 24 kHz resampled at a time, and the margin for the filter (twice 15 would be enough)."""
SILENCE_DB = -80.0
"""Loudness of digital silence."""

_WEIGHTS = PackagedWeights(
    package="silero_vad",
    requirement="silero-vad==6.2.3",
    member="data/silero_vad.onnx",
    sha256="1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
)
"""The weights are located without importing the package, which would require torchaudio."""


def speech_probability(track: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return the probability of speech in each video frame.

    Args:
        track: int16 [frames * 1000] at 24 kHz; frame f owns samples [f * 1000, (f + 1) * 1000).

    Returns:
        float32 [frames] in 0..1.
    """
    frames = len(track) // SAMPLES_PER_FRAME
    if not np.any(track):
        return np.zeros(frames, np.float32)
    session, state = onnx_session(_WEIGHTS.path()), np.zeros((2, 1, 128), np.float32)
    rate = np.array(_VAD_RATE, np.int64)
    values = []
    before = np.zeros(_CONTEXT, np.float32)
    for block in _at_vad_rate(track):
        audio = np.concatenate([before, block, np.zeros(-len(block) % _WINDOW, np.float32)])
        for at in range(0, len(audio) - _CONTEXT, _WINDOW):
            piece = audio[None, at : at + _CONTEXT + _WINDOW]
            out, state = session.run(None, {"input": piece, "state": state, "sr": rate})
            values.append(float(out[0, 0]))
        before = audio[-_CONTEXT:]
    centres_s = (np.arange(len(values)) + 0.5) * _WINDOW / _VAD_RATE
    return np.asarray(np.interp((np.arange(frames) + 0.5) / VIDEO_FPS, centres_s, values), np.float32)


def _at_vad_rate(track: NDArray[np.int16]) -> Iterator[NDArray[np.float32]]:
    """Yield the audio at 16 kHz in blocks of whole windows, float32 in -1..1; hours at once would not fit in memory."""
    from scipy.signal import resample_poly

    for start in range(0, len(track), _BLOCK):
        low, stop = max(start - _MARGIN, 0), min(start + _BLOCK, len(track))
        part = track[low : stop + _MARGIN].astype(np.float32) / 32768
        audio = resample_poly(part, 2, 3).astype(np.float32)
        first = (start - low) * 2 // 3
        yield audio[first : first + -(-(stop - start) * 2 // 3)]


def loudness_db(track: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return the root mean square of each video frame's samples in dBFS, float32 [frames]."""
    frames = len(track) // SAMPLES_PER_FRAME
    blocks = track[: frames * SAMPLES_PER_FRAME].reshape(frames, SAMPLES_PER_FRAME)
    power = np.zeros(frames, np.float32)
    for start in range(0, frames, 1024):  # hours of audio as floats would not fit in memory
        power[start : start + 1024] = np.mean((blocks[start : start + 1024].astype(np.float32) / 32768) ** 2, axis=1)
    level = 10 * np.log10(power + 1e-12)
    return np.asarray(np.maximum(level, SILENCE_DB), np.float32)
