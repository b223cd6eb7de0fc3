"""Runs the distillation stages: checkpoints, batches, teacher trajectories, metrics."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lpm_model.progress import Progress
from lpm_model.training.distill.collapse_monitor import HeldOutRollout
from lpm_model.training.distill.config import Distillation, DmdStage
from lpm_model.training.distill.roles import ModelRoles
from lpm_model.training.distill.rollout_samplers import RolloutSampler
from lpm_model.training.distill.stages import DmdModule, OdeModule, StageModule
from lpm_model.training.distill.trajectories import TrajectoryShards, sample_teacher
from lpm_model.training.engine.checkpoints import CheckpointFile
from lpm_model.training.engine.data import ClipBatches, WindowSampling
from lpm_model.training.engine.launch import Mesh
from lpm_model.training.engine.loop import LOSS_WINDOW, LossHistory, ReIterable, run
from lpm_model.training.engine.shard_reader import Clips

DMD_STAGES = {
    "off_policy": "off-policy DMD",
    "on_policy": "on-policy DMD",
    "refiner": "refiner DMD",
    "long": "long tuning",
}
"""Setting and name of the distribution-matching stages, in order."""
StepBatches = Callable[[range], Iterable[Any]]
"""Returns this process's batches of some steps."""


class StageCheckpoint(CheckpointFile):
    """The checkpoint of a stage, whose steps are batches of all processes; the main process writes it."""

    def __init__(self, folder: Path, mesh: Mesh) -> None:
        super().__init__(folder)
        self.mesh = mesh

    def step(self) -> int:
        return super().step() * self.mesh.data_parallel

    def save(self, module: nn.Module, optimizers: list[Optimizer], step: int, losses: Sequence[float] = ()) -> None:
        """Write the checkpoint after `step` batches; all processes call it together."""
        if self.mesh.is_main:
            super().save(module, optimizers, step // self.mesh.data_parallel, losses)
        self.mesh.barrier()


@dataclass(frozen=True, slots=True)
class StageRunner:
    """Shared inputs of the distillation stages, and methods that run them."""

    roles: ModelRoles
    clips: Clips
    held_out: HeldOutRollout | None
    folder: Path
    settings: Distillation
    mesh: Mesh
    progress: Progress | None
    logger: Any
    shards: TrajectoryShards
    """Teacher trajectories."""

    def ode_regression(self) -> dict[str, float]:
        """Run stage 1 and return its metrics."""
        start = self._checkpoint("ode").step() // self.mesh.data_parallel
        module = OdeModule(self.roles, self.settings, self.held_out, start, self.mesh)
        return self._fit(
            "ode", module, self.trajectory_batches, self.settings.ode.steps, self.settings.checkpoint_steps
        )

    def match_distribution(
        self, key: str, sampler: RolloutSampler, batches: StepBatches, checkpoint_steps: int | None = None
    ) -> dict[str, float]:
        """Run a stage of distribution matching and return its metrics.

        Args:
            key: of the stage in settings and metrics, one of DMD_STAGES.
            sampler: generates the clips that are matched.
            batches: batches that start the sampler's clips.
            checkpoint_steps: batches between checkpoints; None = `settings.checkpoint_steps`.
        """
        stage: DmdStage = getattr(self.settings, key)
        module = DmdModule(
            self.roles, self.settings, stage, sampler, name=DMD_STAGES[key], held_out=self.held_out,
            start=self._checkpoint(key).step() // self.mesh.data_parallel, mesh=self.mesh,
        )  # fmt: skip
        steps = stage.steps * (stage.critic_steps + 1)
        return self._fit(key, module, batches, steps, checkpoint_steps or self.settings.checkpoint_steps)

    def trajectory_batches(self, steps: range) -> ReIterable:
        """Return this process's teacher trajectories of some steps."""
        return ReIterable(lambda: self.shards.batches(steps, self.mesh.data_rank, self.mesh.data_parallel))

    def clip_batches(self, latents: int, seed_offset: int) -> StepBatches:
        """Return batches of dataset clips of `latents` latent frames, which start and condition rollouts."""
        return partial(self._clips_of_steps, latents, seed_offset)

    def _clips_of_steps(self, latents: int, seed_offset: int, steps: range) -> ClipBatches:
        world = self.mesh.data_parallel
        return ClipBatches(
            self.clips, self.roles.online, latents=latents, batch=self.settings.batch // world,
            steps=range(steps.start * world + self.mesh.data_rank, steps.stop * world, world),
            seed=self.settings.seed + seed_offset, batches_per_step=world,
            sampling=WindowSampling(noise_aug_prob=self.settings.noise_aug_prob),
        )  # fmt: skip

    def sample_trajectories(self) -> None:
        """Sample the teacher shard by shard; shards of an interrupted run are reused."""
        shards, settings, mesh = self.shards, self.settings, self.mesh
        own = range(mesh.data_rank, shards.count, mesh.data_parallel)
        missing = shards.missing(own)
        source = ClipBatches(
            self.clips, self.roles.online, latents=settings.clip_latents, batch=settings.batch,
            steps=range(shards.count), seed=settings.seed + 1,
            sampling=WindowSampling(noise_aug_prob=settings.noise_aug_prob),
        )  # fmt: skip
        numbers: Iterable[int] = missing
        if self.progress is not None and missing:
            numbers = self.progress.track(missing, "teacher trajectories", len(own), len(own) - len(missing))
        with self.roles.activate("teacher") as teacher:
            for number in numbers:
                shards.write(number, sample_teacher(teacher, source.make(number).to(self.roles.device), settings))
        mesh.barrier()

    def _checkpoint(self, key: str) -> StageCheckpoint:
        return StageCheckpoint(self.folder / f"checkpoint-{key}", self.mesh)

    def _fit(
        self, key: str, module: StageModule, batches: StepBatches, steps: int, checkpoint_steps: int
    ) -> dict[str, float]:
        """Run the remaining steps of a stage, and load its retained weights into the networks.

        Args:
            key: of the stage.
            module: resumes from its `start`.
            batches: returns the batches of some steps.
            steps: batches of the stage on each process.
            checkpoint_steps: batches between checkpoints.

        Returns:
            `KEY_loss` and, with a collapse monitor, `KEY_validation_distance` and `KEY_best_step`.
        """
        checkpoint, world = self._checkpoint(key), self.mesh.data_parallel
        history = LossHistory(checkpoint.losses())
        if module.start:
            checkpoint.restore(module, [])
        if module.start < steps and not (module.monitor is not None and module.monitor.collapsed):
            history = run(
                module, batches(range(module.start, steps)), steps * world, checkpoint, checkpoint_steps * world,
                description=f"distil: {module.name}", progress=self.progress, logger=self.logger, mesh=self.mesh,
            )  # fmt: skip
            checkpoint.save(module, [], steps * world, history.losses[-LOSS_WINDOW:])
        module.load_retained_weights()
        metrics = {f"{key}_loss": history.mean()}
        if module.monitor is not None:
            metrics[f"{key}_validation_distance"] = module.monitor.best_distance
            metrics[f"{key}_best_step"] = float(module.monitor.best_step)
        return metrics
