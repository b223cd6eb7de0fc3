"""Triangular filters on the HTK mel scale (https://en.wikipedia.org/wiki/Mel_scale), for all that hears."""

import functools

import numpy as np
from numpy.typing import NDArray


@functools.cache
def mel_filters(bands: int, rate: int, fft: int, low_hz: float = 0.0, high_hz: float = 0.0) -> NDArray[np.float64]:
    """Triangles evenly spaced in mel over the bins of a real transform, float64 [fft / 2 + 1, bands].

    Args:
        bands: how many.
        rate: samples a second.
        fft: length of the transform.
        low_hz: where the first one begins.
        high_hz: where the last one ends; 0 = half the rate.
    """
    at_hz = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (low_hz, high_hz or rate / 2))
    edges = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    rising = (at_hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at_hz) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)
