"""What every training shares: the Lightning trainer, the schedule, states that a killed run resumes from."""

import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lpm_model.precision import Precision, native_type
from lpm_model.progress import Progress
from lpm_model.training.engine.launch import ALONE, Mesh
from lpm_model.training.engine.muon import ShardedMuon, StackedMuon

log = logging.getLogger(__name__)
T = TypeVar("T")
ORTHOGONAL_STEPS = 3
"""Newton-Schulz steps of Muon: three lose half a per cent of what five gain and save a tenth of a tiny step's time."""
RECENT = 50
"""Losses that the reported one is the mean of."""


def scheduled(
    optimizer: Optimizer, steps: int, warmup: int, start: int = 0, *, constant: bool = False
) -> dict[str, Any]:
    """Linear warm-up, then a cosine to a twentieth or the same for ever, from step `start` of the whole run."""

    def factor(index: int) -> float:
        step = index + start
        if step < warmup:
            return (step + 1) / warmup
        if constant:
            return 1.0
        return 0.05 + 0.475 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def muon_and_adamw(transformer: nn.Module, matrix_rate: float, rate: float, weight_decay: float) -> list[Optimizer]:
    """Muon (https://kellerjordan.github.io/posts/muon/) for the matrices inside the blocks, AdamW for all the rest.

    Weights that do not learn (`requires_grad` False) are left out.
    """
    blocks: nn.Module = transformer.blocks  # type: ignore[assignment]
    learning = {id(weight) for weight in transformer.parameters() if weight.requires_grad}
    linear = [module.weight for module in blocks.modules() if isinstance(module, nn.Linear)]
    hidden = [weight for weight in linear if id(weight) in learning]
    rest = [w for w in transformer.parameters() if id(w) in learning - {id(weight) for weight in hidden}]
    optimizers: list[Optimizer] = []
    if hidden:
        muon = ShardedMuon if isinstance(hidden[0], DTensor) else StackedMuon
        optimizers.append(muon(hidden, matrix_rate, weight_decay=weight_decay, ns_steps=ORTHOGONAL_STEPS))
    if rest:
        optimizers.append(torch.optim.AdamW(rest, rate, (0.9, 0.95), weight_decay=weight_decay, fused=True))
    return optimizers


def take_step(module: lightning.LightningModule, weights: Iterable[Tensor], clip_norm: float) -> None:
    """Clip the gradients, let all optimizers and their schedules take a step, and clear the gradients."""
    torch.nn.utils.clip_grad_norm_(weights, clip_norm)
    # Lightning hands out a list, or the one that there is.
    every: list[list[Any]] = [
        given if isinstance(given, list) else [given] for given in (module.optimizers(), module.lr_schedulers())
    ]
    for optimizer, schedule in zip(*every, strict=True):
        optimizer.step()
        schedule.step()
    module.zero_grad()


def state_tensors(module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """What a run resumes from: `module.NAME` and `optimizerNUMBER.INDEX.KEY`."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{number}.{index}.{key}": value for key, value in moments.items()}
    return tensors


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

    def losses(self) -> list[float]:
        """The last losses before the state was written, so that a resumed run reports what an unbroken one does."""
        if not self.path.is_file():
            return []
        with safe_open(self.path, "pt") as file:
            return list(json.loads(file.metadata()["run"]).get("losses", []))

    def save(self, module: nn.Module, optimizers: list[Optimizer], step: int, losses: Sequence[float] = ()) -> None:
        """Write the state after `step` steps."""
        tensors = {name: value.contiguous() for name, value in state_tensors(module, optimizers).items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"run": json.dumps({"step": step, "losses": list(losses)})})
        os.replace(partial, self.path)

    @torch.no_grad()
    def restore(self, module: nn.Module, optimizers: list[Optimizer]) -> None:
        """Copy what `save` wrote into a module and its freshly made optimizers, one tensor at a time.

        Raises:
            ValueError: the state is of another model.
        """
        own = module.state_dict()
        weights = [[weight for group in each.param_groups for weight in group["params"]] for each in optimizers]
        with safe_open(self.path, "pt") as file:
            names = list(file.keys())
        if {name.removeprefix("module.") for name in names if name.startswith("module.")} != set(own):
            raise ValueError(f"{self.path} is the state of another model: delete its folder and train from the start")
        for name in names:
            with safe_open(self.path, "pt") as file:  # opened for each: what was read stays in memory until it closes
                value = file.get_tensor(name)
                part, rest = name.split(".", 1)
                if part == "module":
                    own[rest].copy_(value)
                elif optimizers:
                    index, key = rest.split(".", 1)
                    number = int(part.removeprefix("optimizer"))
                    weight = weights[number][int(index)]
                    place = "cpu" if key == "step" else weight.device  # AdamW counts on the CPU
                    optimizers[number].state[weight][key] = value.to(place, copy=True)
                del value


class Checkpoints(Callback):
    """Saves a state every so many steps and restores it at the start; `start` is the step the run goes on from.

    `stride` batches are done at a time, by as many processes.
    """

    def __init__(self, file: StateFile, every: int, history: "LossHistory", stride: int = 1) -> None:
        self.file, self.every, self.history, self.stride = file, every, history, stride
        self.start = file.step()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.start:
            log.info("going on from step %d", self.start)
            self.file.restore(module, trainer.optimizers)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = self.start + self.stride * (trainer.fit_loop.total_batch_idx + 1)
        if done % self.every == 0:
            self.file.save(pl_module, trainer.optimizers, done, self.history.losses[-RECENT:])


class LossHistory(Callback):
    """Remembers the losses, and ends a run whose loss is no number, naming the clips."""

    def __init__(self, before: Sequence[float] = ()) -> None:
        self.losses, self.before = list(before), len(before)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            names = ", ".join(getattr(batch, "keys", ()))
            raise ValueError(
                f"the loss is not finite at batch {batch_idx} ({names}): lower learning_rate or drop these clips"
            )
        self.losses.append(loss)
        done = len(self.losses) - self.before
        if done % 50 == 0:
            log.info("%d steps of this run: loss %.4f", done, self.recent())

    def recent(self) -> float:
        """Mean of the last 50."""
        tail = self.losses[-RECENT:]
        return sum(tail) / len(tail) if tail else float("nan")


def run(
    module: lightning.LightningModule,
    batches: Iterable[Any],
    steps: int,
    state: StateFile,
    checkpoint_steps: int,
    *,
    description: str,
    progress: Progress | None = None,
    clip_norm: float | None = 1.0,
    logger: Any = False,
    callbacks: Sequence[Callback] = (),
    mesh: Mesh = ALONE,
    precision: Precision = "auto",
) -> LossHistory:
    """Fit a module for what is left of `steps` batches.

    Args:
        module: knows its own `start`, the step that the run goes on from.
        batches: exactly the batches that are left, of this process where several share them.
        steps: batches of the whole run, by all processes.
        state: where the run resumes from and saves to.
        checkpoint_steps: batches between saved states.
        description: of the progress bar.
        progress: shows it; None is silent.
        clip_norm: gradient norm limit; None for manual optimization.
        logger: Lightning logger(s).
        callbacks: more of Lightning's.
        mesh: processes; with several the module cuts itself up in `configure_model`.
        precision: of the products.
    """
    warnings.filterwarnings("ignore", module="lightning.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    history = LossHistory(state.losses())
    left, devices = (steps - state.step()) // mesh.data, dict[str, Any](devices=1)
    if mesh.several:
        scale = mesh.scale
        strategy = ModelParallelStrategy(mesh.data, scale.sequence_parallel)
        devices = {"devices": scale.processes, "num_nodes": scale.nodes, "strategy": strategy}
    mixed = native_type(mesh.device, precision) == torch.bfloat16
    trainer = lightning.Trainer(
        accelerator="auto", **devices, precision="bf16-mixed" if mixed else "32-true", max_epochs=1,
        limit_train_batches=left, logger=logger,
        gradient_clip_val=clip_norm, enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=10,
        enable_progress_bar=False,
        callbacks=[history, Checkpoints(state, checkpoint_steps, history, mesh.data), *callbacks],
    )  # fmt: skip
    if left > 0:
        # Lightning wants the same kind of batches in every process, also where one alone shows a bar.
        if progress is not None or mesh.several:
            batches = _Tracked(batches, progress, description, left, steps // mesh.data)
        try:
            trainer.fit(module, batches)
        except SystemExit as end:  # Lightning's answer to Ctrl-C and SIGTERM, which would end without a word
            raise KeyboardInterrupt from end
        module.to(mesh.device)  # Lightning takes it off the device at the end
    elif state.step():
        module.configure_model()
        state.restore(module, [])
    return history


class Again:
    """Makes an iterable of a function that returns iterators."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


class _Tracked:
    """Batches that move a progress bar; Lightning asks for a new iterator once an epoch."""

    def __init__(
        self, batches: Iterable[Any], progress: Progress | None, description: str, left: int, total: int
    ) -> None:
        self.batches, self.progress, self.description, self.left, self.total = (
            batches, progress, description, left, total,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Any]:
        if self.progress is None:
            return iter(self.batches)
        return self.progress.track(self.batches, self.description, self.total, self.total - self.left)

    def __len__(self) -> int:
        return self.left
