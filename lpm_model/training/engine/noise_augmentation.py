"""Sounds that are no speech, mixed under the voices so that a face neither speaks nor falls apart at them."""

import torch
from torch import Tensor

from lpm_model.config import AUDIO_RATE

QUIETEST_DB, LOUDEST_DB = -60.0, -15.0
"""Range of the sound's level (RMS, relative to full scale)."""
TONES = 3
"""Tones of a chord."""
HIGHEST_HZ = 4000.0
"""Of a tone; the lowest is 60 Hz."""


def disturbed(voice: Tensor, generator: torch.Generator) -> Tensor:
    """A voice with noise of a random colour, or a chord, under it; it comes and goes once.

    Args:
        voice: [n] samples in [-1, 1] at 24 kHz.
        generator: draws kind, level and span.

    Returns:
        [n] samples in [-1, 1].
    """
    draws = torch.rand(4 + TONES, generator=generator)
    sound = _noise(len(voice), float(draws[0]), generator) if draws[1] < 0.5 else _chord(len(voice), draws[4:])
    level_db = QUIETEST_DB + float(draws[2]) * (LOUDEST_DB - QUIETEST_DB)
    sound *= 10 ** (level_db / 20) / sound.square().mean().sqrt().clamp(min=1e-6)
    middle, half = torch.rand(2, generator=generator).tolist()
    place = torch.linspace(0, 1, len(voice))
    inside = ((0.2 + half - (place - middle).abs()) * 20).clamp(0, 1)
    return (voice + inside * sound).clamp(-1, 1)


def _noise(samples: int, colour: float, generator: torch.Generator) -> Tensor:
    """White (colour 0) to brown (colour 1) noise."""
    spectrum = torch.fft.rfft(torch.randn(samples, generator=generator))
    spectrum *= torch.arange(1, len(spectrum) + 1).pow(-colour)
    return torch.fft.irfft(spectrum, samples)


def _chord(samples: int, pitches: Tensor) -> Tensor:
    time_s = torch.arange(samples) / AUDIO_RATE
    frequencies_hz = 60 * (HIGHEST_HZ / 60) ** pitches
    return torch.sin(2 * torch.pi * frequencies_hz[:, None] * time_s).sum(0)
