"""From Base to Online LPM: five stages, each from what the one before has kept, all through lpm_model.rollout.

1 regression to the teacher's trajectories, 2 distribution matching on the teacher's clips, 3 on the student's own,
4 of a refiner over them, 5 on roll-outs that go on from step to step (paper section 4.2; LongLive, arXiv 2509.22622).
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lpm_model.autoencoder.load import copy_autoencoder, load_autoencoder
from lpm_model.character import read_base_config
from lpm_model.checkpoint import load_weights, read_weights, save_model
from lpm_model.config import ModelConfig, from_mapping, to_mapping
from lpm_model.digests import model_digest
from lpm_model.encoders.load import copy_encoders, encoders_of
from lpm_model.lora import doubled
from lpm_model.online import OnlineModel
from lpm_model.progress import Progress
from lpm_model.training.config import Distillation, DmdStage
from lpm_model.training.distill.collapse_monitor import HeldOut
from lpm_model.training.distill.long_rollout import Streaming
from lpm_model.training.distill.roles import Cast
from lpm_model.training.distill.rollout_samplers import OffPolicy, OnPolicy, Player
from lpm_model.training.distill.stages import DmdModule, OdeModule, Stage
from lpm_model.training.distill.trajectories import TrajectoryShards, sample_teacher, shards_key
from lpm_model.training.engine.data import ClipBatches, Draw, read_dataset
from lpm_model.training.engine.launch import Mesh, joined
from lpm_model.training.engine.loop import RECENT, Again, LossHistory, StateFile, run
from lpm_model.training.engine.shard_reader import Clips, ShardClips, read_clips

log = logging.getLogger(__name__)
NAMES = {
    "off_policy": "off-policy DMD",
    "on_policy": "on-policy DMD",
    "refiner": "refiner DMD",
    "long": "long tuning",
}
"""What the stages of distribution matching are called."""
HELD_OUT_SEED = 9
"""Added to the seed for the clips of the guard."""


class StepState(StateFile):
    """A stage's state, whose steps are counted in batches of all processes; the first one writes it."""

    def __init__(self, folder: Path, mesh: Mesh) -> None:
        super().__init__(folder)
        self.mesh = mesh

    def step(self) -> int:
        return super().step() * self.mesh.data

    def save(self, module: nn.Module, optimizers: list[Optimizer], step: int, losses: Sequence[float] = ()) -> None:
        """Write the state after `step` batches; all processes call it together."""
        if self.mesh.first:
            super().save(module, optimizers, step // self.mesh.data, losses)
        self.mesh.wait()


@dataclass(frozen=True, slots=True)
class Work:
    """One distillation."""

    cast: Cast
    clips: Clips
    held_out: HeldOut | None
    folder: Path
    settings: Distillation
    mesh: Mesh
    progress: Progress | None
    logger: Any
    shards: TrajectoryShards
    """The teacher's trajectories."""

    def batches(self, steps: range, latents: int, offset: int) -> ClipBatches:
        """This process's clips of each step; `offset` is added to the seed."""
        data = self.mesh.data
        return ClipBatches(
            self.clips, self.cast.online, latents=latents, batch=self.settings.batch // data,
            steps=range(steps.start * data + self.mesh.data_rank, steps.stop * data, data),
            seed=self.settings.seed + offset, draw=Draw(noise_aug_prob=self.settings.noise_aug_prob), together=data,
        )  # fmt: skip

    def run(
        self, key: str, make: Callable[[int], Stage], batches: Callable[[range], Iterable[Any]], steps: int, every: int
    ) -> dict[str, float]:
        """Run what is left of a stage, and leave what is kept of it in the networks.

        Args:
            key: of the stage in settings and metrics.
            make: its module, which goes on from a step.
            batches: of some steps.
            steps: batches of the stage on each process.
            every: batches between saved states.

        Returns:
            Metrics: the loss, what was kept and how far from the truth that is.
        """
        state, data = StepState(self.folder / f"state-{key}", self.mesh), self.mesh.data
        start = state.step() // data
        module, history = make(start), LossHistory(state.losses())
        if start:
            state.restore(module, [])
        if start < steps and not (module.guard is not None and module.guard.collapsed):
            history = run(
                module, batches(range(start, steps)), steps * data, state, every * data,
                description=f"distil: {module.name}", progress=self.progress, clip_norm=None, logger=self.logger,
                mesh=self.mesh,
            )  # fmt: skip
            state.save(module, [], steps * data, history.losses[-RECENT:])
        module.settle()
        metrics = {f"{key}_loss": history.recent()}
        if module.guard is not None:
            metrics |= {f"{key}_distance": module.guard.distance, f"{key}_kept_step": float(module.guard.best_step)}
        return metrics


def distill_online(
    base: Path,
    dataset: Path,
    folder: Path,
    settings: Distillation,
    progress: Progress | None = None,
    *,
    logger: Any = False,
    trajectories: Path | None = None,
) -> dict[str, float]:
    """Distil a Base LPM folder into an Online LPM folder; a killed run goes on from its last saved state.

    Args:
        base: the teacher's folder.
        dataset: folder that curate wrote; its clips start and condition the roll-outs.
        folder: output; trajectories and states inside it go at the end.
        settings: of all stages.
        progress: shows the steps.
        logger: Lightning logger(s).
        trajectories: folder that keeps the teacher's trajectories for other distillations that need the same ones;
            without it they go at the end.

    Returns:
        Metrics of each stage: its last loss, the step that was kept, and its distance to the truth.

    Raises:
        ValueError: folders that do not fit each other.
    """
    with joined(settings.scale) as mesh:
        if not mesh.first:
            progress, logger = None, False
        return _distill(base, dataset, folder, settings, progress, logger, mesh, trajectories)


def _distill(
    base: Path, dataset: Path, folder: Path, settings: Distillation, progress: Progress | None, logger: Any, mesh: Mesh,
    trajectories: Path | None,
) -> dict[str, float]:  # fmt: skip
    torch.manual_seed(settings.seed)
    config, encoder = read_base_config(base), load_autoencoder(base / "autoencoder")
    about = read_dataset(dataset, encoder.digest)
    online = OnlineModel(
        from_mapping(ModelConfig, config["model"]), settings.online, encoder, config["size_px"], encoders_of(base)
    )
    load_weights(online.backbone, read_weights(base / "model.safetensors"), base / "model.safetensors")
    for part in (*online.networks.values(), online.autoencoder):
        assert isinstance(part, nn.Module)
        part.to(mesh.device)  # the encoders stay where the batches are made
    clips, held_out = _split(read_clips(dataset), settings)
    cast = Cast(online, settings.lora)
    parent = model_digest(base)
    kept = trajectories / shards_key(settings, parent, about["digest"]) if trajectories else folder / "trajectories"
    shards = TrajectoryShards(kept, settings)
    work = Work(cast, clips, _watched(held_out, cast, settings), folder, settings, mesh, progress, logger, shards)
    metrics = _stages(work) | {"trajectories": float(settings.trajectories)}
    if not mesh.first:
        return metrics
    shape = {"model": to_mapping(online.config), "online": to_mapping(settings.online), "size_px": online.size_px}
    origin = {"dataset_digest": about["digest"], "parent": parent, "settings": to_mapping(settings)}
    weights = {"model": cast.state("student")}
    if online.refiner is not None:
        weights["refiner"] = cast.state("refiner")
        if settings.lora.rank:
            shape["refiner_lora"] = to_mapping(doubled(settings.lora))
    save_model(folder, weights, shape, {**origin, "metrics": metrics})
    copy_autoencoder(base / "autoencoder", folder)
    copy_encoders(encoders_of(base), folder)
    for left in (*folder.glob("state-*"), folder / "trajectories"):
        shutil.rmtree(left, ignore_errors=True)
    return metrics


def _split(clips: ShardClips, settings: Distillation) -> tuple[Clips, Clips]:
    """Clips to learn from, and clips to watch; the same ones where there is nobody to hold out."""
    share, length = settings.collapse_monitor.held_out_fraction, settings.clip_latents
    if not settings.collapse_monitor.every_steps or not share:
        return clips, clips
    if len({facts.group for facts in clips.facts}) < 2:
        log.warning("the dataset shows one person: the guard measures on clips that are learned from")
        return clips, clips
    learned, held_out = clips.split(share)
    if not any(facts.latents >= length for facts in held_out.facts):
        log.warning("no held-out clip has %d latent frames: the guard measures on clips that are learned from", length)
        return clips, clips
    return learned, held_out


def _watched(clips: Clips, cast: Cast, settings: Distillation) -> HeldOut | None:
    """What the guard looks at, where there is one."""
    if not settings.collapse_monitor.every_steps:
        return None
    source = ClipBatches(
        clips, cast.online, latents=settings.clip_latents, batch=settings.collapse_monitor.clips, steps=range(1),
        seed=settings.seed + HELD_OUT_SEED,
    )  # fmt: skip
    return HeldOut(cast, source.make(0).to(cast.device))


def _stages(work: Work) -> dict[str, float]:
    """All stages in their order, in place."""
    settings, cast = work.settings, work.cast
    if not any(getattr(settings, key).steps for key in ("ode", *NAMES)):
        log.warning("all stages have 0 steps: the Online LPM has the weights of its Base, which was never causal")
    length, metrics = settings.clip_latents, dict[str, float]()
    if settings.ode.steps or settings.off_policy.steps:
        _make_trajectories(work)
    if settings.ode.steps:
        metrics |= work.run(
            "ode", lambda start: OdeModule(cast, settings, work.held_out, start, work.mesh),
            _trajectories(work), settings.ode.steps, settings.checkpoint_steps,
        )  # fmt: skip
    if settings.off_policy.steps:
        metrics |= _match(work, "off_policy", settings.off_policy, OffPolicy(cast, settings), _trajectories(work))
    if settings.on_policy.steps:
        player, latents = OnPolicy(cast, settings, "student"), settings.on_policy.rollout_latents or length
        metrics |= _match(work, "on_policy", settings.on_policy, player, lambda s: work.batches(s, latents, 2))
    if cast.online.refiner is not None:
        cast.start("refiner", "student")
        if not settings.refiner.steps:
            log.warning("refiner.steps is 0: the refiner is a copy of the backbone that was never trained to refine")
    if settings.refiner.steps:
        player, latents = OnPolicy(cast, settings, "refiner"), settings.refiner.rollout_latents or length
        metrics |= _match(work, "refiner", settings.refiner, player, lambda s: work.batches(s, latents, 3))
    if settings.long.steps:
        stream = Streaming(cast, settings)
        # A state is saved where a roll-out begins, so that none has to be saved.
        every = stream.per_roll_out * max(1, settings.checkpoint_steps // stream.per_roll_out)
        metrics |= _match(work, "long", settings.long, stream, lambda s: work.batches(s, length, 4), every)
    return metrics


def _match(
    work: Work, key: str, stage: DmdStage, player: Player, batches: Callable[[range], Iterable[Any]], every: int = 0
) -> dict[str, float]:
    """A stage of distribution matching."""

    def make(start: int) -> DmdModule:
        return DmdModule(
            work.cast, work.settings, stage, player, name=NAMES[key], held_out=work.held_out, start=start,
            mesh=work.mesh,
        )  # fmt: skip

    steps = stage.steps * (stage.critic_steps + 1)
    return work.run(key, make, batches, steps, every or work.settings.checkpoint_steps)


def _trajectories(work: Work) -> Callable[[range], Again]:
    """This process's teacher trajectories of some steps."""
    return lambda steps: Again(lambda: work.shards.batches(steps, work.mesh.data_rank, work.mesh.data))


def _make_trajectories(work: Work) -> None:
    """Sample the teacher shard by shard; those that an earlier run has left are taken as they are."""
    shards, settings, mesh = work.shards, work.settings, work.mesh
    mine = range(mesh.data_rank, shards.count, mesh.data)
    missing = shards.missing(mine)
    source = ClipBatches(
        work.clips, work.cast.online, latents=settings.clip_latents, batch=settings.batch, steps=range(shards.count),
        seed=settings.seed + 1, draw=Draw(noise_aug_prob=settings.noise_aug_prob),
    )  # fmt: skip
    bar: Iterable[int] = missing
    if work.progress is not None and missing:
        bar = work.progress.track(missing, "teacher trajectories", len(mine), len(mine) - len(missing))
    with work.cast.playing("teacher") as teacher:
        for number in bar:
            shards.write(number, sample_teacher(teacher, source.make(number).to(work.cast.device), settings))
    mesh.wait()
