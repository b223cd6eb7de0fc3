"""Checkpoints that a killed training resumes from: one safetensors file, or one shard for each of several processes.

A checkpoint holds weights, EMA, optimizer moments, the step and the last losses.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from lpm_model.training.engine.launch import Mesh

RUN = "run.json"
"""Names the step and the folder of the newest sharded checkpoint."""


def checkpoint_tensors(module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, named `module.NAME` and `optimizerNUMBER.INDEX.KEY`."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{number}.{index}.{key}": value for key, value in moments.items()}
    return tensors


class CheckpointFile:
    """The checkpoint of a run in one safetensors file, replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoint.safetensors"

    def step(self) -> int:
        """Return the step to resume from, 0 without a checkpoint."""
        return int(self._run_metadata()["step"])

    def losses(self) -> list[float]:
        """Return the last losses before the checkpoint, which the final mean of a resumed run includes."""
        return list(self._run_metadata().get("losses", []))

    def _run_metadata(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {"step": 0}
        with safe_open(self.path, "pt") as file:
            metadata: dict[str, Any] = json.loads(file.metadata()["run"])
            return metadata

    def save(self, module: nn.Module, optimizers: list[Optimizer], step: int, losses: Sequence[float] = ()) -> None:
        """Write the checkpoint of step `step`."""
        tensors = {name: value.contiguous() for name, value in checkpoint_tensors(module, optimizers).items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"run": json.dumps({"step": step, "losses": list(losses)})})
        os.replace(partial, self.path)

    @torch.no_grad()
    def restore(self, module: nn.Module, optimizers: list[Optimizer]) -> None:
        """Copy the checkpoint into a module and its new optimizers, one tensor at a time.

        Raises:
            ValueError: the checkpoint is of another model.
        """
        own = module.state_dict()
        weights = [[weight for group in each.param_groups for weight in group["params"]] for each in optimizers]
        with safe_open(self.path, "pt") as file:
            names = list(file.keys())
        if {name.removeprefix("module.") for name in names if name.startswith("module.")} != set(own):
            raise ValueError(f"{self.path} is the checkpoint of another model: delete its folder and start again")
        for name in names:
            with safe_open(
                self.path, "pt"
            ) as file:  # reopened for each tensor: tensors stay in memory until the file is closed
                value = file.get_tensor(name)
                part, rest = name.split(".", 1)
                if part == "module":
                    own[rest].copy_(value)
                elif optimizers:
                    index, key = rest.split(".", 1)
                    number = int(part.removeprefix("optimizer"))
                    weight = weights[number][int(index)]
                    device = "cpu" if key == "step" else weight.device  # AdamW counts on the CPU
                    optimizers[number].state[weight][key] = value.to(device, copy=True)
                del value


class ShardedCheckpoint(CheckpointFile):
    """One file from one process, a folder of shards from several; any number of processes can resume from either.

    Each checkpoint has its own folder of shards; `run.json`, replaced atomically, names the newest complete one.
    """

    def __init__(self, folder: Path, mesh: Mesh) -> None:
        super().__init__(folder)
        self.folder, self.mesh = folder, mesh

    def _newest(self) -> tuple[int, list[float], Path | None]:
        """Step, losses and shard folder of the newest checkpoint; the folder is None for a single file or none."""
        step = super().step()
        about: dict[str, Any] = {"step": 0}
        if (self.folder / RUN).is_file():
            about = json.loads((self.folder / RUN).read_text())
        if about["step"] <= step:
            return step, super().losses(), None
        return about["step"], about["losses"], self.folder / about["shards"]

    def step(self) -> int:
        return self._newest()[0]

    def losses(self) -> list[float]:
        return self._newest()[1]

    def save(self, module: nn.Module, optimizers: list[Optimizer], step: int, losses: Sequence[float] = ()) -> None:
        """Write the checkpoint of step `step`; all processes call it together."""
        if not self.mesh.is_distributed:
            super().save(module, optimizers, step, losses)
            return
        shards = self.folder / f"step-{step}"
        if self.mesh.is_main:
            shutil.rmtree(shards, ignore_errors=True)  # left over when a run was killed here
            shards.mkdir(parents=True)
        self.mesh.barrier()
        writer = HuggingFaceStorageWriter(str(shards), save_distributed=True)
        save(checkpoint_tensors(module, optimizers), storage_writer=writer)
        self.mesh.barrier()
        if not self.mesh.is_main:
            return
        partial = self.folder / f"{RUN}.partial"
        partial.write_text(json.dumps({"step": step, "losses": list(losses), "shards": shards.name}))
        os.replace(partial, self.folder / RUN)
        for older in self.folder.glob("step-*"):
            if older != shards:
                shutil.rmtree(older)

    def restore(self, module: nn.Module, optimizers: list[Optimizer]) -> None:
        shards = self._newest()[2]
        if shards is None and not self.mesh.is_distributed:
            super().restore(module, optimizers)
            return
        reader = HuggingFaceStorageReader(str(shards or self.folder))
        tensors = self._empty_tensors(reader, module, optimizers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads several shards
            load(tensors, storage_reader=reader, no_dist=not distributed.is_initialized())
        load_checkpoint_tensors(tensors, module, optimizers)

    def _empty_tensors(
        self, reader: HuggingFaceStorageReader, module: nn.Module, optimizers: Sequence[Optimizer]
    ) -> dict[str, Tensor]:
        """Return an empty tensor for each saved one, sharded like its weight in this run."""
        weights = {f"module.{name}": value for name, value in module.state_dict().items()}
        for number, optimizer in enumerate(optimizers):
            of = [weight for group in optimizer.param_groups for weight in group["params"]]
            weights |= {f"optimizer{number}.{index}": weight for index, weight in enumerate(of)}
        tensors: dict[str, Tensor] = {}
        for name, about in reader.read_metadata().state_dict_metadata.items():
            like = weights.get(name, weights.get(name.rpartition(".")[0]))
            if like is None or not isinstance(about, TensorStorageMetadata):
                continue  # moments, when only weights are restored
            if like.shape == about.size:
                tensors[name] = torch.empty_like(like, dtype=about.properties.dtype, requires_grad=False)
            else:
                tensors[name] = torch.empty(about.size, dtype=about.properties.dtype)
        return tensors


def load_checkpoint_tensors(tensors: Mapping[str, Tensor], module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Load the tensors of `checkpoint_tensors` into a module and its new optimizers."""
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[int, dict[str, Tensor]]] = {}
    for name, value in tensors.items():
        part, rest = name.split(".", 1)
        if part == "module":
            weights[rest] = value
        else:
            index, key = rest.split(".", 1)
            moments.setdefault(int(part.removeprefix("optimizer")), {}).setdefault(int(index), {})[key] = value
    module.load_state_dict(weights)
    for number, optimizer in enumerate(optimizers):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments.get(number, {}), "param_groups": groups})
