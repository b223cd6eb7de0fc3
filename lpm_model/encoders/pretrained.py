"""Pretrained encoders through transformers: umT5 for text, wav2vec2 for audio. Only safetensors are loaded.

B batch, F latent frames, n audio tokens a latent frame.
"""

import re
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from lpm_model.config import AUDIO_RATE, FRAMES_PER_LATENT, SAMPLES_PER_FRAME, SAMPLES_PER_LATENT, AudioConfig

WAV2VEC2_RATE = 16_000
"""Sample rate (Hz) of wav2vec2: two samples for three of ours."""
FEATURES_PER_S = 50
"""Feature rate (Hz) of wav2vec2."""
FEATURES_PER_TOKEN = 2
"""One token, of one video frame, concatenates the features at its first sample and at its middle."""
_TAPS = 48


class UmT5TextEncoder:
    """umT5's encoder as Wan 2.1 uses it: padding is zero after the encoder.

    Args:
        folder: with config.json, model.safetensors (or shards with an index) and the tokenizer's files.
        tokens: of the output; longer texts are truncated.

    Raises:
        ValueError: transformers is missing, a file is missing or damaged.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        self._model = _load(folder, "UMT5EncoderModel")
        self._tokenizer = _load(folder, "AutoTokenizer")
        self.tokens, self.width = tokens, int(self._model.config.d_model)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Encode texts to float32 [B, tokens, width]; zero after the end of a text."""
        clean = [re.sub(r"\s+", " ", text).strip() for text in texts]
        read = self._tokenizer(
            clean, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        mask = read.attention_mask.to(self._model.device)
        hidden: Tensor = self._model(read.input_ids.to(self._model.device), mask).last_hidden_state
        return hidden.float() * mask[..., None]


class Wav2Vec2AudioEncoder:
    """wav2vec2 over a separate window for every latent frame, so that streams and whole files give the same features.

    wav2vec2 attends to its whole input and normalises by it; a fixed window (past, span, look-ahead) makes that local.

    Args:
        config: past and look-ahead.
        folder: with config.json and model.safetensors.

    Raises:
        ValueError: transformers is missing, a file is missing or damaged.
    """

    def __init__(self, config: AudioConfig, folder: Path) -> None:
        self.past_samples, self.lookahead_samples = config.past_samples, config.lookahead_samples
        self._model = _load(folder, "Wav2Vec2Model")
        self.width = FEATURES_PER_TOKEN * int(self._model.config.hidden_size)
        self._indices = self._feature_indices()

    @property
    def window_samples(self) -> int:
        """Samples that one latent frame's features depend on."""
        return self.past_samples + SAMPLES_PER_LATENT + self.lookahead_samples

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Encode [B, past_samples + 4000 F + lookahead_samples] in [-1, 1] to [B, F, n, width]."""
        windows = audio.float().unfold(1, self.window_samples, SAMPLES_PER_LATENT)
        batch, frames = windows.shape[:2]
        wave = to_16k(windows.flatten(0, 1))
        wave = (wave - wave.mean(1, keepdim=True)) / (wave.var(1, unbiased=False, keepdim=True) + 1e-7).sqrt()
        features: Tensor = self._model(wave.to(self._model.dtype)).last_hidden_state.float()
        return rearrange(features[:, self._indices], "(b f) n t d -> b f n (t d)", b=batch, f=frames)

    def _feature_indices(self) -> Tensor:
        """Features of each video frame of the span, [n, FEATURES_PER_TOKEN]; sample s has feature 50 s // 24000."""
        first = self.past_samples + SAMPLES_PER_FRAME * torch.arange(FRAMES_PER_LATENT)[:, None]
        samples = first + SAMPLES_PER_FRAME // FEATURES_PER_TOKEN * torch.arange(FEATURES_PER_TOKEN)
        count = int(self._model._get_feat_extract_output_lengths(-(-self.window_samples * WAV2VEC2_RATE // AUDIO_RATE)))
        return (samples * FEATURES_PER_S // AUDIO_RATE).clamp(max=count - 1)


def to_16k(audio: Tensor) -> Tensor:
    """Resample 24 kHz to 16 kHz by a polyphase filter: up by 2, a windowed sinc at 8 kHz, down by 3.

    Args:
        audio: [B, n].

    Returns:
        [B, ceil(2 n / 3)], as many as scipy.signal.resample_poly returns.
    """
    reach = torch.arange(-_TAPS, _TAPS + 1, dtype=torch.float64)
    kernel = torch.sinc(reach / 3) * torch.kaiser_window(2 * _TAPS + 1, periodic=False, beta=8.0, dtype=torch.float64)
    kernel = (2 * kernel / kernel.sum()).to(audio)
    spread = functional.pad(audio[:, :, None], (0, 1)).flatten(1)
    return functional.conv1d(spread[:, None], kernel.to(audio.device)[None, None], stride=3, padding=_TAPS)[:, 0]


def _load(folder: Path, name: str) -> Any:
    """Load a model or tokenizer of transformers from a local folder."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{folder} needs transformers: pip install 'lpm[train]'") from error
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no pretrained encoder: config.json is missing; copy the whole folder")
    kind = getattr(transformers, name)
    if name == "AutoTokenizer":
        return _load_or_explain(folder, lambda: kind.from_pretrained(folder, local_files_only=True))
    model = _load_or_explain(folder, lambda: kind.from_pretrained(folder, local_files_only=True, use_safetensors=True))
    return model.eval().requires_grad_(False)


def _load_or_explain(folder: Path, load: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return load()
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder} does not load ({reason}): copy the whole folder, weights as safetensors") from error
