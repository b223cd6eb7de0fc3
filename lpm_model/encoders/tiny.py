"""Text and audio encoders behind two small protocols; the tiny ones need no weights.

B batch, F latent frames, n audio tokens a latent frame.
"""

import hashlib
from functools import cache

import torch
from einops import rearrange
from torch import Tensor

from lpm_model.config import AUDIO_RATE, FRAMES_PER_LATENT, SAMPLES_PER_LATENT, AudioConfig, ModelConfig
from lpm_model.encoders.mel import mel_filters

_FFT, _HOP = 1024, 250


@cache
def _filters(bands: int) -> Tensor:
    return torch.from_numpy(mel_filters(bands, AUDIO_RATE, _FFT)).float()


class MelAudioEncoder:
    """Log-mel bands around every video frame: no weights, and exactly local."""

    def __init__(self, config: AudioConfig) -> None:
        self.past_samples, self.lookahead_samples = config.past_samples, config.lookahead_samples
        self.bands = config.mels
        # One spectrum per hop from the window's first sample; only spectra that end inside the window are used.
        self.columns = (
            self.past_samples + SAMPLES_PER_LATENT // FRAMES_PER_LATENT + self.lookahead_samples - _FFT
        ) // _HOP + 1
        self.width = self.columns * self.bands

    def encode(self, audio: Tensor) -> Tensor:
        """Encode [B, past_samples + 4000 F + lookahead_samples] in [-1, 1] to [B, F, n, width]."""
        frame = SAMPLES_PER_LATENT // FRAMES_PER_LATENT
        frames = (audio.shape[1] - self.past_samples - self.lookahead_samples) // frame
        window = torch.hann_window(_FFT, device=audio.device)
        spectra = torch.fft.rfft(audio.float().unfold(1, _FFT, _HOP) * window).abs().square()
        mel = spectra @ _filters(self.bands).to(audio.device)
        level = torch.log10(mel + 1e-4) + 3  # silence is -1, speech spreads around 1
        context = level.unfold(1, self.columns, frame // _HOP)[:, :frames]
        return rearrange(context, "b (f n) m c -> b f n (m c)", n=FRAMES_PER_LATENT)


class HashTextEncoder:
    """Maps each word to a fixed pseudo-random vector: enough for the short captions of the tiny profile."""

    def __init__(self, config: ModelConfig) -> None:
        self.width, self.tokens = config.text_width, config.text_tokens

    @cache  # noqa: B019 - encoders live as long as the process
    def _word(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def encode(self, texts: list[str]) -> Tensor:
        """Encode texts to [B, tokens, width]; short texts end in zeros, long ones are truncated."""
        out = torch.zeros(len(texts), self.tokens, self.width)
        for row, text in enumerate(texts):
            for column, word in enumerate(text.lower().replace(",", " ").replace(".", " ").split()[: self.tokens]):
                out[row, column] = self._word(word)
        return out
