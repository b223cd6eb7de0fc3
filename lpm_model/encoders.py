"""Text and audio encoders behind two small protocols; the tiny ones need no weights.

B batch, F latent frames, n audio tokens a latent frame.
"""

import hashlib
import math
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from lpm_model.config import AUDIO_RATE, FRAMES_PER_LATENT, SAMPLES_PER_LATENT, AudioConfig, ModelConfig

_FFT, _HOP = 1024, 250


class AudioEncoder(Protocol):
    """Sees a fixed window around each span, the same offline and streaming (design: audio context)."""

    width: int
    past_samples: int
    lookahead_samples: int

    def encode(self, audio: Tensor) -> Tensor:
        """[B, past_samples + 4000 F + lookahead_samples] in [-1, 1] to [B, F, n, width]."""
        ...


@cache
def mel_filters(bands: int, rate: int, fft: int) -> Tensor:
    """Triangular filters on the HTK mel scale (https://en.wikipedia.org/wiki/Mel_scale), [fft / 2 + 1, bands]."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, rate / 2, fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


class MelAudioEncoder:
    """Log-mel bands around every video frame: no weights, exactly local."""

    def __init__(self, config: AudioConfig) -> None:
        self.past_samples, self.lookahead_samples = config.past_samples, config.lookahead_samples
        self.bands = config.mels
        # Spectra start every hop from the window's first sample; those whose whole span lies inside it count.
        self.columns = (
            self.past_samples + SAMPLES_PER_LATENT // FRAMES_PER_LATENT + self.lookahead_samples - _FFT
        ) // _HOP + 1
        self.width = self.columns * self.bands

    def encode(self, audio: Tensor) -> Tensor:
        frame = SAMPLES_PER_LATENT // FRAMES_PER_LATENT
        frames = (audio.shape[1] - self.past_samples - self.lookahead_samples) // frame
        window = torch.hann_window(_FFT, device=audio.device)
        spectra = torch.fft.rfft(audio.float().unfold(1, _FFT, _HOP) * window).abs().square()
        mel = spectra @ mel_filters(self.bands, AUDIO_RATE, _FFT).to(audio.device)
        level = torch.log10(mel + 1e-4) + 3  # silence is -1, speech spreads around 1
        context = level.unfold(1, self.columns, frame // _HOP)[:, :frames]
        return context.flatten(2).unflatten(1, (-1, FRAMES_PER_LATENT))


AUDIO_ENCODERS: dict[str, type[MelAudioEncoder]] = {"mel": MelAudioEncoder}
"""Audio encoders by name."""


def build_audio_encoder(config: AudioConfig) -> AudioEncoder:
    """The encoder that a model's config names.

    Raises:
        ValueError: an unknown name.
    """
    if config.encoder not in AUDIO_ENCODERS:
        raise ValueError(f"unknown audio encoder {config.encoder!r}; choose one of {', '.join(AUDIO_ENCODERS)}")
    return AUDIO_ENCODERS[config.encoder](config)


class HashTextEncoder:
    """Each word becomes a fixed pseudo-random vector: enough for the short captions of the tiny profile."""

    def __init__(self, config: ModelConfig) -> None:
        self.width, self.tokens = config.text_width, config.text_tokens

    @cache  # noqa: B019 - encoders live as long as the process
    def _word(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def encode(self, texts: list[str]) -> Tensor:
        """[B, tokens, width]; short texts end in zeros, long ones are cut."""
        out = torch.zeros(len(texts), self.tokens, self.width)
        for row, text in enumerate(texts):
            for column, word in enumerate(text.lower().replace(",", " ").replace(".", " ").split()[: self.tokens]):
                out[row, column] = self._word(word)
        return out
