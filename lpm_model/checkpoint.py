"""Model folders: safetensors weights, config.json, provenance.json. Never a pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file.

    Raises:
        ValueError: the file is missing, truncated or not a safetensors file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: copy the whole model folder, or run the step that wrote it again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): copy it or run the step that wrote it again") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a model, or assign them to one on the meta device, and reject any mismatch.

    Raises:
        ValueError: weights that are missing, unexpected or of another shape; the message names them and the file.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    unexpected = sorted(set(weights) - set(own))
    if missing or unexpected:
        raise ValueError(
            f"{source} does not fit this model: missing {missing[:3]}, unexpected {unexpected[:3]}; "
            "take the weights and config.json from the same folder"
        )
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(value.shape)}, the config needs {tuple(own[name].shape)}; "
                "take the weights and config.json from the same folder"
            )
    meta = any(value.is_meta for value in own.values())
    model.load_state_dict(dict(weights), assign=meta)


def save_model(
    folder: Path,
    models: Mapping[str, nn.Module | Mapping[str, Tensor]],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a model folder.

    Args:
        folder: created if missing.
        models: file stem to module or its weights; "model" is the main one.
        config: everything needed to build the modules again.
        provenance: dataset digest, code commit, config digest, parent, metrics.
        dtype: of float32 weights on disk; other types and normalisation statistics are stored as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stem, model in models.items():
        weights = {
            name: (value.to(dtype) if value.dtype == torch.float32 and "statistics" not in name else value).clone(
                memory_format=torch.contiguous_format
            )
            for name, value in (model.state_dict() if isinstance(model, nn.Module) else model).items()
        }
        save_file(weights, folder / f"{stem}.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2, sort_keys=True, default=str) + "\n")
