"""Resume states of several processes: each writes its rows as safetensors, and any number of processes reads them."""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from lpm_model.training.engine.launch import Mesh
from lpm_model.training.engine.loop import StateFile, state_tensors

RUN = "run.json"


class SharedState(StateFile):
    """The state of a run: one file by one process, a folder of shards by several; either reads what the other left.

    Shards are in a folder of their step; `run.json`, replaced atomically, names the whole one.
    """

    def __init__(self, folder: Path, mesh: Mesh) -> None:
        super().__init__(folder)
        self.folder, self.mesh = folder, mesh

    def _run(self) -> tuple[int, list[float], Path | None]:
        """Step, losses and folder of shards of the newest state; no folder where that is one file, or none."""
        step = super().step()
        about: dict[str, Any] = {"step": 0}
        if (self.folder / RUN).is_file():
            about = json.loads((self.folder / RUN).read_text())
        if about["step"] <= step:
            return step, super().losses(), None
        return about["step"], about["losses"], self.folder / about["shards"]

    def step(self) -> int:
        return self._run()[0]

    def losses(self) -> list[float]:
        return self._run()[1]

    def save(self, module: nn.Module, optimizers: list[Optimizer], step: int, losses: Sequence[float] = ()) -> None:
        """Write the state after `step` steps; all processes call it together."""
        if not self.mesh.several:
            super().save(module, optimizers, step, losses)
            return
        shards = self.folder / f"step-{step}"
        if self.mesh.first:
            shutil.rmtree(shards, ignore_errors=True)  # what was left when a run was killed here
            shards.mkdir(parents=True)
        self.mesh.wait()
        writer = HuggingFaceStorageWriter(str(shards), save_distributed=True)
        save(state_tensors(module, optimizers), storage_writer=writer)
        self.mesh.wait()
        if not self.mesh.first:
            return
        partial = self.folder / f"{RUN}.partial"
        partial.write_text(json.dumps({"step": step, "losses": list(losses), "shards": shards.name}))
        os.replace(partial, self.folder / RUN)
        for older in self.folder.glob("step-*"):
            if older != shards:
                shutil.rmtree(older)

    def restore(self, module: nn.Module, optimizers: list[Optimizer]) -> None:
        shards = self._run()[2]
        if shards is None and not self.mesh.several:
            super().restore(module, optimizers)
            return
        reader = HuggingFaceStorageReader(str(shards or self.folder))
        wanted = self._places(reader, module, optimizers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads what several wrote
            load(wanted, storage_reader=reader, no_dist=not distributed.is_initialized())
        put_state(wanted, module, optimizers)

    def _places(
        self, reader: HuggingFaceStorageReader, module: nn.Module, optimizers: Sequence[Optimizer]
    ) -> dict[str, Tensor]:
        """An empty tensor for each that was saved, cut as this run cuts the weight that it belongs to."""
        weights = {f"module.{name}": value for name, value in module.state_dict().items()}
        for number, optimizer in enumerate(optimizers):
            of = [weight for group in optimizer.param_groups for weight in group["params"]]
            weights |= {f"optimizer{number}.{index}": weight for index, weight in enumerate(of)}
        found: dict[str, Tensor] = {}
        for name, about in reader.read_metadata().state_dict_metadata.items():
            like = weights.get(name, weights.get(name.rpartition(".")[0]))
            if like is None or not isinstance(about, TensorStorageMetadata):
                continue  # moments, where weights alone are wanted
            if like.shape == about.size:
                found[name] = torch.empty_like(like, dtype=about.properties.dtype, requires_grad=False)
            else:
                found[name] = torch.empty(about.size, dtype=about.properties.dtype)
        return found


def put_state(tensors: Mapping[str, Tensor], module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Put what `state_tensors` named into a module and its freshly made optimizers."""
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
