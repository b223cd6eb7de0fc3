"""Text and audio encoders behind two small protocols; the tiny ones need no weights.

B batch, F latent frames, n audio tokens a latent frame.
"""

import hashlib
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lpm_model.config import AUDIO_RATE, FRAMES_PER_LATENT, SAMPLES_PER_LATENT, AudioConfig, ModelConfig
from lpm_model.mel import mel_filters

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
def _filters(bands: int) -> Tensor:
    return torch.from_numpy(mel_filters(bands, AUDIO_RATE, _FFT)).float()


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
        mel = spectra @ _filters(self.bands).to(audio.device)
        level = torch.log10(mel + 1e-4) + 3  # silence is -1, speech spreads around 1
        context = level.unfold(1, self.columns, frame // _HOP)[:, :frames]
        return context.flatten(2).unflatten(1, (-1, FRAMES_PER_LATENT))


class TextEncoder(Protocol):
    """Texts of any length to a fixed number of tokens, zero behind a text's end."""

    width: int
    tokens: int

    def encode(self, texts: list[str]) -> Tensor:
        """[B, tokens, width]."""
        ...


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


AUDIO, TEXT = "audio", "text"
"""Folders of the pretrained encoders inside a folder of encoders."""
_COPIED = (".json", ".safetensors")


def build_audio_encoder(config: AudioConfig, folder: Path | None = None) -> AudioEncoder:
    """The audio encoder that a model's config names.

    Args:
        config: names it, and its window.
        folder: of encoders, for those with weights.

    Raises:
        ValueError: an unknown name, or weights that are missing.
    """
    if config.encoder == "mel":
        return MelAudioEncoder(config)
    if config.encoder == "wav2vec2":
        from lpm_model.pretrained import Wav2Vec2AudioEncoder

        return Wav2Vec2AudioEncoder(config, _within(folder, AUDIO, config.encoder))
    raise ValueError(f"unknown audio encoder {config.encoder!r}; choose mel or wav2vec2")


def build_text_encoder(config: ModelConfig, folder: Path | None = None) -> TextEncoder:
    """The text encoder that a model's config names; see `build_audio_encoder`."""
    if config.text_encoder == "hash":
        return HashTextEncoder(config)
    if config.text_encoder == "umt5":
        from lpm_model.pretrained import UmT5TextEncoder

        return UmT5TextEncoder(_within(folder, TEXT, config.text_encoder), config.text_tokens)
    raise ValueError(f"unknown text encoder {config.text_encoder!r}; choose hash or umt5")


def _within(folder: Path | None, name: str, encoder: str) -> Path:
    if folder is None:
        raise ValueError(f"{encoder} has weights: give train.encoders=DIR with {name}/ in it")
    return folder / name


def copy_encoders(source: Path | None, model: Path) -> None:
    """Put pretrained encoders into a model's folder, as links where the disk allows it; None has none to put.

    Only JSON and safetensors go along: what else a download holds (pickles, code) is not read.
    """
    if source is None:
        return
    for path in sorted(source.rglob("*")):
        if path.suffix in _COPIED and path.is_file():
            target = model / "encoders" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(path.resolve(), target)
            except OSError:  # another disk
                shutil.copyfile(path, target)


def encoders_of(model: Path) -> Path | None:
    """The folder of pretrained encoders inside a model's folder, if it has one."""
    folder = model / "encoders"
    return folder if folder.is_dir() else None
