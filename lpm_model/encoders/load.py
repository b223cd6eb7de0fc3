"""Construction of the encoders that a config names, and their copies in model folders."""

import os
import shutil
from pathlib import Path

from lpm_model.config import AudioConfig, ModelConfig
from lpm_model.encoders.api import AudioEncoder, TextEncoder
from lpm_model.encoders.tiny import HashTextEncoder, MelAudioEncoder

AUDIO, TEXT = "audio", "text"
"""Folders of the pretrained encoders inside a folder of encoders."""
_COPIED = (".json", ".safetensors")


def build_audio_encoder(config: AudioConfig, folder: Path | None = None) -> AudioEncoder:
    """Build the audio encoder that a model's config names.

    Args:
        config: name and window of the encoder.
        folder: folder of encoders, for those with weights.

    Raises:
        ValueError: an unknown name, or weights that are missing.
    """
    if config.encoder == "mel":
        return MelAudioEncoder(config)
    if config.encoder == "wav2vec2":
        from lpm_model.encoders.pretrained import Wav2Vec2AudioEncoder

        return Wav2Vec2AudioEncoder(config, _within(folder, AUDIO, config.encoder))
    raise ValueError(f"unknown audio encoder {config.encoder!r}; choose mel or wav2vec2")


def build_text_encoder(config: ModelConfig, folder: Path | None = None) -> TextEncoder:
    """Build the text encoder that a model's config names; see `build_audio_encoder`."""
    if config.text_encoder == "hash":
        return HashTextEncoder(config)
    if config.text_encoder == "umt5":
        from lpm_model.encoders.pretrained import UmT5TextEncoder

        return UmT5TextEncoder(_within(folder, TEXT, config.text_encoder), config.text_tokens)
    raise ValueError(f"unknown text encoder {config.text_encoder!r}; choose hash or umt5")


def _within(folder: Path | None, name: str, encoder: str) -> Path:
    if folder is None:
        raise ValueError(f"{encoder} has weights: give train.encoders=DIR with {name}/ in it")
    return folder / name


def copy_encoders(source: Path | None, model: Path) -> None:
    """Copy pretrained encoders into a model's folder, as hard links if the disk allows it; None copies nothing.

    Only JSON and safetensors are copied: other files of a download (pickles, code) are never read.
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


def find_encoders(model: Path) -> Path | None:
    """Return the folder of pretrained encoders inside a model's folder, or None."""
    folder = model / "encoders"
    return folder if folder.is_dir() else None
