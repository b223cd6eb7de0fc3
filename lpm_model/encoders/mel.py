"""Triangular filters on the HTK mel scale (https://en.wikipedia.org/wiki/Mel_scale)."""

import functools

import numpy as np
from numpy.typing import NDArray


@functools.cache
def mel_filters(bands: int, rate: int, fft: int, low_hz: float = 0.0, high_hz: float = 0.0) -> NDArray[np.float64]:
    """Return triangles evenly spaced in mel over the bins of a real FFT.

    Args:
        bands: number of filters.
        rate: sample rate (Hz).
        fft: length of the transform (samples).
        low_hz: lower edge of the first filter.
        high_hz: upper edge of the last filter; 0 is half the rate.

    Returns:
        float64 [fft / 2 + 1, bands].
    """
    at_hz = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (low_hz, high_hz or rate / 2))
    edges = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    rising = (at_hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at_hz) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)
