"""Reading and writing of weights in one safetensors file, or in several with an index, one tensor at a time."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

SHARD_BYTES = 5 * 2**30
STEM = "model"
"""Name of our own weight files without their extension."""


class Shards:
    """Reads the weights of a folder one tensor at a time, from one safetensors file or several with an index."""

    def __init__(self, folder: Path, stem: str) -> None:
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        self.folder, self._stack = folder, ExitStack()
        if index.is_file():
            self.files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        elif single.is_file():
            with self._open(single) as file:
                self.files = dict.fromkeys(file.keys(), single.name)
        else:
            raise ValueError(f"{folder} holds neither {index.name} nor {single.name}: give the folder of a transformer")
        self._opened: dict[str, Any] = {}

    def _open(self, path: Path) -> Any:
        try:
            return safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): copy the whole folder again") from error

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            ValueError: the folder does not hold it.
        """
        if name not in self.files:
            raise ValueError(f"{self.folder} has no weights {name!r}: give a transformer of the expected layout")
        file = self.files[name]
        if file not in self._opened:
            self._opened[file] = self._stack.enter_context(self._open(self.folder / file))
        tensor: Tensor = self._opened[file].get_tensor(name)
        return tensor


def write_shards(folder: Path, stem: str, weights: Iterator[tuple[str, Tensor]], shard_bytes: int) -> None:
    """Write tensors, in the given order, to files of about `shard_bytes`, with an index if there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, Tensor] = {}
    parts: list[tuple[Path, list[str]]] = []
    total = size = 0

    def flush() -> None:
        path = folder / f"{stem}.part{len(parts)}.safetensors"
        save_file(held, path, metadata={"format": "pt"})
        parts.append((path, list(held)))
        held.clear()

    for name, tensor in weights:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = tensor.contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(parts) == 1:
        parts[0][0].replace(folder / f"{stem}.safetensors")
        return
    where: dict[str, str] = {}
    for number, (path, names) in enumerate(parts, 1):
        name = f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors"
        path.replace(folder / name)
        where |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def init_weights_from(model: nn.Module, folder: Path) -> list[str]:
    """Initialise a model from a folder, tensor by tensor; weights that the folder lacks keep their initial values.

    Args:
        model: for example the transformer of a new stage, with branches that the folder's model did not have.
        folder: from `lpm import-wan` or an earlier training.

    Returns:
        Names of the weights that keep their initial values.

    Raises:
        ValueError: weights that the model does not have, or of another shape.
    """
    own = model.state_dict()
    with Shards(folder, STEM) as shards:
        unknown = sorted(set(shards.files) - set(own))
        if unknown:
            raise ValueError(
                f"{folder} holds {unknown[0]!r} and {len(unknown) - 1} more weights that this model does not have: "
                "give train.model the shape of its config.json"
            )
        for name in shards.files:
            value = shards.read(name)
            if value.shape != own[name].shape:
                raise ValueError(
                    f"{folder}: {name} has shape {tuple(value.shape)}, train.model needs {tuple(own[name].shape)}: "
                    "take the shape from its config.json"
                )
            own[name].copy_(value)
        fresh = sorted(set(own) - set(shards.files))
    log.info("%s: %d weights loaded, %d keep their initial values", folder, len(own) - len(fresh), len(fresh))
    return fresh
