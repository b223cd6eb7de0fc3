"""Loading of autoencoder folders: the tiny one, or Wan 2.1's as diffusers writes it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpm_model.autoencoder.api import VideoAutoencoder
from lpm_model.autoencoder.tiny import AutoencoderConfig, TinyVideoAutoencoder
from lpm_model.config import from_mapping

SHIPPED = Path(__file__).parents[1] / "weights" / "autoencoder-tiny"
"""The autoencoder that comes with the package."""


def load_autoencoder(folder: Path | None = None) -> VideoAutoencoder:
    """Load an autoencoder folder: a tiny one (`model.safetensors`, `config.json`), or Wan's as diffusers writes it.

    Args:
        folder: None loads the one that ships with the package.

    Raises:
        ValueError: a missing file or weights of another shape, with the file's name.
    """
    source = SHIPPED if folder is None else folder
    config_file = source / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{source} holds no autoencoder: config.json is missing; copy the whole folder")
    config = json.loads(config_file.read_text())
    if "_class_name" in config:
        from lpm_model.autoencoder.wan import load_wan_autoencoder

        return load_wan_autoencoder(source)
    return _load_tiny(source, config)


def _load_tiny(source: Path, config: Mapping[str, Any]) -> TinyVideoAutoencoder:
    from lpm_model.checkpoint import load_weights, read_weights
    from lpm_model.digests import file_digest

    weights_file = source / "model.safetensors"
    model = TinyVideoAutoencoder(from_mapping(AutoencoderConfig, config))
    load_weights(model, read_weights(weights_file), weights_file)
    model.digest = file_digest(weights_file)
    return model.eval().requires_grad_(False)


def copy_autoencoder(source: Path | None, model: Path) -> None:
    """Copy an autoencoder into a model's folder, where serving reads it; None copies the shipped one."""
    shutil.copytree(SHIPPED if source is None else source, model / "autoencoder", dirs_exist_ok=True)
