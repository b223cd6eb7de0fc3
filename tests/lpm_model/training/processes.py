"""Functions that the processes of a test run; in a module, because spawned processes import them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.config import Lora
from lpm_model.training.base import train as base_training
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.base.train import BaseModule, clip_batches
from lpm_model.training.engine.checkpoints import ShardedCheckpoint
from lpm_model.training.engine.config import Scale
from lpm_model.training.engine.launch import SINGLE_PROCESS, Mesh, join_processes
from lpm_model.training.engine.loop import run
from lpm_model.training.engine.shard_reader import read_clips
from lpm_model.training.engine.sharding import full_weights
from tests.lpm_model import tiny

# Branches are absent often, so that processes differ in what they use; 47 rows do not divide evenly.
SETTINGS = BaseTraining(
    model=replace(tiny.MODEL, ffn_width=47), steps=4, accumulate=2, batch=2, clip_latents=4, crop_steps=0,
    checkpoint_steps=2, warmup_steps=1, condition_dropout=0.5, learning_rate=1e-2, precision="fp32",
)  # fmt: skip
ADAPTED = replace(SETTINGS, lora=Lora(rank=2), steps=2)
DATA, SEQUENCE = Scale(processes=2), Scale(processes=2, sequence_parallel=2)
HALF = 4
"""Batches before the first checkpoint."""


class Recorder(Callback):
    """Records the gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: lightning.LightningModule, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = {
                name: full_tensor(weight.grad)
                for name, weight in pl_module.dit.named_parameters()
                if weight.grad is not None
            }


def full_tensor(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def fit(
    place: Path,
    settings: BaseTraining,
    state: Path,
    mesh: Mesh = SINGLE_PROCESS,
    batches: int = 0,
    kind: type[BaseModule] = BaseModule,
) -> dict[str, Tensor]:
    """Train as `train_base` does, from nonzero weights.

    Args:
        place: folder with dataset/ and autoencoder/.
        settings: of the training.
        state: folder of the resume state.
        mesh: processes.
        batches: number of batches to stop after; 0 = run to the end.
        kind: of the module.

    Returns:
        `losses`, under `gradient.` those of the first step, under `weight.` and `ema.` how far these have come.
    """
    torch.manual_seed(0)
    base = base_training.build_model(settings, load_autoencoder(place / "autoencoder"), tiny.SIZE_PX, mesh)
    if mesh.is_main:
        learning = {name for name, weight in base.dit.named_parameters() if weight.requires_grad}
        for name, weight in tiny.randomised(base.dit, scale=0.05).named_parameters():
            weight.requires_grad = name in learning
    begin = {name: value.clone() for name, value in base.dit.state_dict().items()}
    kept = ShardedCheckpoint(state, mesh)
    module = kind(base, settings, kept.step(), None, mesh)
    recorder = Recorder()
    history = run(
        module, clip_batches(read_clips(place / "dataset"), base, settings, kept.step(), mesh),
        batches or settings.steps * settings.accumulate, kept, HALF, description="",
        callbacks=[recorder], mesh=mesh, precision=settings.precision,
    )  # fmt: skip
    parts = {
        "gradient": recorder.gradients,
        "weight": {name: value - begin[name] for name, value in full_weights(module.dit).items()},
        "ema": {name: value - begin[name] for name, value in full_weights(module.ema.module).items()},
    }
    found = {f"{part}.{name}": value.contiguous() for part, of in parts.items() for name, value in of.items()}
    return {"losses": torch.tensor(history.losses), **found}


class Failing(BaseModule):
    """Fails in the second process in the middle of a training, while the first one waits for its weights."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.mesh.rank == 1 and index == 1:
            raise ValueError("the disk is full: make room")
        return super().training_step(batch, index)


def measure(place: Path) -> None:
    """Run every case of two processes; the main one writes the results of each to a file. The last case fails."""
    torch.set_num_threads(1)
    with join_processes(DATA) as joint:
        shared = Mesh(SEQUENCE, joint.rank)
        cases = {
            "data": fit(place, replace(SETTINGS, scale=DATA), place / "data", joint, HALF),
            "sequence": fit(
                place, replace(SETTINGS, scale=SEQUENCE, activation_checkpointing=True), place / "sequence", shared
            ),
            "lora": fit(place, replace(ADAPTED, scale=DATA), place / "lora", joint),
            "resumed": fit(place, replace(SETTINGS, scale=DATA), place / "one_process", joint),
        }
        if joint.is_main:
            for name, found in cases.items():
                save_file(found, place / f"{name}.safetensors")
        fit(place, replace(SETTINGS, scale=DATA), place / "fails", joint, kind=Failing)
