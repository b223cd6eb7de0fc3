"""What every training shares: the Lightning trainer, the schedule, states that a killed run resumes from."""

import json
import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

log = logging.getLogger(__name__)


def cosine(optimizer: Optimizer, steps: int, warmup: int, start: int = 0) -> dict[str, Any]:
    """Linear warm-up, then a cosine to a twentieth, counted from step `start` of the whole run."""

    def factor(index: int) -> float:
        step = index + start
        if step < warmup:
            return (step + 1) / warmup
        return 0.05 + 0.475 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StateFile:
    """Weights, averages and optimizer moments of a run in one safetensors file, replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.safetensors"

    def step(self) -> int:
        """The step to go on from; 0 where there is no state."""
        if not self.path.is_file():
            return 0
        with safe_open(self.path, "pt") as file:
            return int(json.loads(file.metadata()["run"])["step"])

    def save(self, module: nn.Module, optimizers: list[Optimizer], step: int) -> None:
        """Write the state after `step` steps."""
        tensors = {f"module.{name}": value.clone(memory_format=torch.contiguous_format) for name, value in module.state_dict().items()}
        for number, optimizer in enumerate(optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer{number}.{index}.{key}": value.clone(memory_format=torch.contiguous_format) for key, value in moments.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"run": json.dumps({"step": step})})
        os.replace(partial, self.path)

    def restore(self, module: nn.Module, optimizers: list[Optimizer]) -> None:
        """Load what `save` wrote into a module and its freshly made optimizers."""
        weights: dict[str, Tensor] = {}
        moments: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
        with safe_open(self.path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part, rest = name.split(".", 1)
                if part == "module":
                    weights[rest] = file.get_tensor(name)
                else:
                    index, key = rest.split(".", 1)
                    moments[int(part.removeprefix("optimizer"))].setdefault(int(index), {})[key] = file.get_tensor(name)
        module.load_state_dict(weights)
        for optimizer, state in zip(optimizers, moments, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Checkpoints(Callback):
    """Saves a state every so many steps and restores it at the start; `start` is the step the run goes on from."""

    def __init__(self, folder: Path, every: int) -> None:
        self.file, self.every = StateFile(folder), every
        self.start = self.file.step()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.start:
            log.info("going on from step %d", self.start)
            self.file.restore(module, trainer.optimizers)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        done = self.start + trainer.fit_loop.total_batch_idx + 1
        if done % self.every == 0:
            self.file.save(module, trainer.optimizers, done)


class StopOnNan(Callback):
    """Ends a run whose loss is no number, naming the step."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and not bool(torch.isfinite(loss)):
            names = ", ".join(getattr(batch, "keys", ()))
            raise ValueError(f"the loss is not finite at batch {batch_idx} ({names}): lower learning_rate or drop these clips")


def run(
    module: lightning.LightningModule,
    loader: DataLoader[Any],
    steps: int,
    folder: Path,
    checkpoint_steps: int,
    *,
    clip_norm: float | None = 1.0,
    callbacks: tuple[Callback, ...] = (),
    logger: Any = False,
) -> lightning.Trainer:
    """Fit a module for what is left of `steps` batches, with bf16 products and a progress bar.

    Args:
        module: knows its own `start`.
        loader: yields exactly the batches that are left.
        steps: batches of the whole run.
        folder: of the resume state.
        checkpoint_steps: batches between saved states.
        clip_norm: gradient norm limit; None for manual optimization.
        callbacks: more of them.
        logger: Lightning logger(s).
    """
    checkpoints = Checkpoints(folder, checkpoint_steps)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*IterableDataset.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    trainer = lightning.Trainer(
        accelerator="auto", devices=1, precision="bf16-mixed", max_epochs=1, logger=logger,
        limit_train_batches=steps - checkpoints.start, gradient_clip_val=clip_norm, enable_checkpointing=False,
        enable_model_summary=False, log_every_n_steps=10,
        callbacks=[checkpoints, StopOnNan(), RichProgressBar(refresh_rate=5), *callbacks],
    )  # fmt: skip
    trainer.fit(module, loader)
    return trainer
