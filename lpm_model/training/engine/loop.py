"""The training loop: a Lightning trainer that resumes from checkpoints, records losses and stops on a bad one."""

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from lpm_model.precision import Precision, native_dtype
from lpm_model.progress import Progress
from lpm_model.training.engine.checkpoints import CheckpointFile
from lpm_model.training.engine.launch import SINGLE_PROCESS, Mesh

log = logging.getLogger(__name__)
LOSS_WINDOW = 50
"""The reported loss is the mean of this many last losses."""


class SaveCheckpoints(Callback):
    """Restores the checkpoint when training starts and saves one every `every` batches.

    Args:
        file: the checkpoint.
        every: batches between checkpoints.
        history: its last losses are saved too.
        stride: batches that all processes compute at the same time.
    """

    def __init__(self, file: CheckpointFile, every: int, history: "LossHistory", stride: int = 1) -> None:
        self.file, self.every, self.history, self.stride = file, every, history, stride
        self.start = file.step()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.start:
            log.info("resuming from step %d", self.start)
            self.file.restore(module, trainer.optimizers)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = self.start + self.stride * (trainer.fit_loop.total_batch_idx + 1)
        if done % self.every == 0:
            self.file.save(pl_module, trainer.optimizers, done, self.history.losses[-LOSS_WINDOW:])


class LossHistory(Callback):
    """Records the losses, and stops a run whose loss is not finite with an error that names the clips."""

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
            log.info("step %d of this run: loss %.4f", done, self.mean())

    def mean(self) -> float:
        """Return the mean of the last 50 losses."""
        tail = self.losses[-LOSS_WINDOW:]
        return sum(tail) / len(tail) if tail else float("nan")


def run(
    module: lightning.LightningModule,
    batches: Iterable[Any],
    steps: int,
    checkpoint: CheckpointFile,
    checkpoint_steps: int,
    *,
    description: str,
    progress: Progress | None = None,
    logger: Any = False,
    callbacks: Sequence[Callback] = (),
    mesh: Mesh = SINGLE_PROCESS,
    precision: Precision = "auto",
) -> LossHistory:
    """Fit a module, which optimizes manually, for the remaining batches of a run.

    Args:
        module: its `start` is the step that the run resumes from.
        batches: exactly the remaining batches of this process.
        steps: batches of the whole run over all processes.
        checkpoint: where the run resumes from and saves to.
        checkpoint_steps: batches between checkpoints.
        description: label of the progress bar.
        progress: shows the bar; None is silent.
        logger: Lightning logger(s).
        callbacks: further Lightning callbacks.
        mesh: processes; with several the module shards itself in `configure_model`.
        precision: data type of the matmuls.

    Returns:
        The losses, including those before the checkpoint.
    """
    warnings.filterwarnings("ignore", module="lightning.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    history = LossHistory(checkpoint.losses())
    left = (steps - checkpoint.step()) // mesh.data_parallel
    mixed = native_dtype(mesh.device, precision) == torch.bfloat16
    trainer = lightning.Trainer(
        accelerator="auto", **_devices(mesh), precision="bf16-mixed" if mixed else "32-true", max_epochs=1,
        limit_train_batches=left, logger=logger,
        enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=10,
        enable_progress_bar=False,
        callbacks=[history, SaveCheckpoints(checkpoint, checkpoint_steps, history, mesh.data_parallel), *callbacks],
    )  # fmt: skip
    if left > 0:
        # Lightning needs the same type of iterable in every process, although only one shows a bar.
        if progress is not None or mesh.is_distributed:
            batches = _TrackedBatches(batches, progress, description, left, steps // mesh.data_parallel)
        try:
            trainer.fit(module, batches)
        except SystemExit as end:  # how Lightning reports Ctrl-C and SIGTERM, which would exit silently
            raise KeyboardInterrupt from end
        module.to(mesh.device)  # Lightning moves it off the device at the end
    elif checkpoint.step():
        module.configure_model()
        checkpoint.restore(module, [])
    return history


def _devices(mesh: Mesh) -> dict[str, Any]:
    """Arguments of the trainer for one process or several."""
    if not mesh.is_distributed:
        return {"devices": 1}
    scale, strategy = mesh.scale, ModelParallelStrategy(mesh.data_parallel, mesh.scale.sequence_parallel)
    return {"devices": scale.processes, "num_nodes": scale.nodes, "strategy": strategy}


class ReIterable:
    """An iterable from a function that returns iterators."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


class _TrackedBatches:
    """Batches that advance a progress bar; Lightning requests a new iterator every epoch."""

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
