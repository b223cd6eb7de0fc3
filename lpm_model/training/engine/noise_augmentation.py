"""Audio noise augmentation: non-speech audio under a voice, so that the face neither reacts nor degrades.

n audio samples at 24 kHz.
"""

import torch
from torch import Tensor

from lpm_model.config import AUDIO_RATE

MIN_LEVEL_DB, MAX_LEVEL_DB = -60.0, -15.0
"""Range of the noise level (RMS, relative to full scale)."""
CHORD_TONES = 3
MIN_TONE_HZ, MAX_TONE_HZ = 60.0, 4000.0


def add_noise(voice: Tensor, generator: torch.Generator) -> Tensor:
    """Mix noise of a random colour, or a chord, into one random span of a voice.

    Args:
        voice: [n] samples in [-1, 1].
        generator: draws kind, level and span.

    Returns:
        [n] samples in [-1, 1].
    """
    draws = torch.rand(4 + CHORD_TONES, generator=generator)
    noise = _noise(len(voice), float(draws[0]), generator) if draws[1] < 0.5 else _chord(len(voice), draws[4:])
    level_db = MIN_LEVEL_DB + float(draws[2]) * (MAX_LEVEL_DB - MIN_LEVEL_DB)
    noise *= 10 ** (level_db / 20) / noise.square().mean().sqrt().clamp(min=1e-6)
    middle, half = torch.rand(2, generator=generator).tolist()
    position = torch.linspace(0, 1, len(voice))
    envelope = ((0.2 + half - (position - middle).abs()) * 20).clamp(0, 1)
    return (voice + envelope * noise).clamp(-1, 1)


def _noise(samples: int, colour: float, generator: torch.Generator) -> Tensor:
    """[n] white (colour 0) to brown (colour 1) noise."""
    spectrum = torch.fft.rfft(torch.randn(samples, generator=generator))
    spectrum *= torch.arange(1, len(spectrum) + 1).pow(-colour)
    return torch.fft.irfft(spectrum, samples)


def _chord(samples: int, pitches: Tensor) -> Tensor:
    """[n] sum of sine tones; pitches [tones] in [0, 1] are logarithmic from the lowest to the highest frequency."""
    time_s = torch.arange(samples) / AUDIO_RATE
    frequencies_hz = MIN_TONE_HZ * (MAX_TONE_HZ / MIN_TONE_HZ) ** pitches
    return torch.sin(2 * torch.pi * frequencies_hz[:, None] * time_s).sum(0)
