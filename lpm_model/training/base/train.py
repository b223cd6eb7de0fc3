"""Flow-matching training of Base LPM.

B batch, F latent frames of the window.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lpm_model import flow
from lpm_model.autoencoder.api import VideoAutoencoder
from lpm_model.autoencoder.load import copy_autoencoder, load_autoencoder
from lpm_model.checkpoint import save_model
from lpm_model.config import to_mapping
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.encoders.load import copy_encoders
from lpm_model.execution import Execution
from lpm_model.lora import add_adapter, merged
from lpm_model.losses import flow_matching_loss, training_weights
from lpm_model.precision import native_type
from lpm_model.progress import Progress
from lpm_model.sampler import BaseModel
from lpm_model.training.base.preference import Pairs, PreferenceLoss, collect, pair_batches
from lpm_model.training.base.validation import HeldOutWindows, Show, Validator
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.engine.checkpoints import ShardedCheckpoint
from lpm_model.training.engine.data import Batch, ClipBatches, RandomCrops, WindowSampling, prefetched, read_dataset
from lpm_model.training.engine.launch import SINGLE_PROCESS, Mesh, join_processes
from lpm_model.training.engine.loop import ReIterable, run
from lpm_model.training.engine.optimizers import muon_and_adamw, step_optimizers, with_schedule
from lpm_model.training.engine.shard_reader import Clips, read_clips
from lpm_model.training.engine.sharding import Branches, full_weights, sequence_group, shard
from lpm_model.training.engine.throughput import Throughput
from lpm_model.weight_shards import start_from

ADAPTER = "base"
"""Name of the adapter that a training with `lora` learns."""


def draw_sigmas(batch: int, frames: int, settings: BaseTraining, generator: torch.Generator) -> Tensor:
    """Noise levels [B, F]: latent 0 clean, the others one level a clip or, by chance, one each."""
    shared = torch.rand(batch, 1, generator=generator).expand(-1, frames)
    own = torch.rand(batch, frames, generator=generator)
    pick = torch.rand(batch, 1, generator=generator) < settings.independent_noise_prob
    sigma = flow.shift_sigma(torch.where(pick, own, shared), settings.sigma_shift)
    return torch.cat([torch.zeros(batch, 1), sigma[:, 1:]], dim=1)


def drop_conditions(conditions: Conditions, chance: float, generator: torch.Generator) -> Conditions:
    """Leave branches out at random, each for the whole batch, and now and then everything but the identity."""
    draws = torch.rand(5, generator=generator)
    if draws[4] < chance:
        return conditions.without("text", "speak", "listen")
    names = ("text", "speak", "listen", "references")
    return conditions.without(*(name for name, draw in zip(names, draws, strict=False) if draw < chance / 2))


class BaseModule(lightning.LightningModule):
    """One role: the model and its weight average."""

    def __init__(
        self,
        base: BaseModel,
        settings: BaseTraining,
        start: int,
        preference: PreferenceLoss | None = None,
        mesh: Mesh = SINGLE_PROCESS,
    ) -> None:
        super().__init__()
        self.preference, self.mesh = preference, mesh
        self.branches: Branches | None = None
        self.automatic_optimization = False  # two optimizers take every step batches_per_step
        self.dit, self.settings, self.start = base.dit, settings, start
        self.ema = AveragedModel(base.dit, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))

    def configure_model(self) -> None:
        """Cut weights and average over the processes, where there are several."""
        if not self.mesh.is_distributed or self.branches is not None:
            return
        averaged: DiffusionTransformer = self.ema.module  # type: ignore[assignment]
        for transformer in (self.dit, averaged):
            shard(transformer, self.mesh, bf16=native_type(self.mesh.device, self.settings.precision) == torch.bfloat16)
        self.dit.set_execution(replace(self.dit.execution, sequence_group=sequence_group(self.mesh)))
        self.branches = Branches(self.dit, self.mesh.device)

    def loss(self, batch: Batch) -> Tensor:
        """Flow matching on one batch."""
        clean, generator = batch.latents, batch.generator
        sigma = draw_sigmas(clean.shape[0], clean.shape[2], self.settings, generator).to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        conditions = drop_conditions(batch.conditions, self.settings.condition_dropout, generator)
        if self.branches is not None:
            self.branches.record(conditions)
        level = sigma[:, None, :, None, None]
        predicted = self.dit(flow.interpolate(clean, noise, level), sigma, conditions)
        weight = training_weights(clean, level, self.settings.motion_weight, self.dit.config.predicts)
        return flow_matching_loss(predicted, flow.velocity(clean, noise), weight)

    def prefer(self, pairs: Pairs) -> Tensor:
        """Preference on one pair, flow matching on its true window."""
        assert self.preference is not None
        clean = pairs.truth.latents
        return self.preference(
            self.dit,
            pairs,
            draw_sigmas(clean.shape[0], clean.shape[2], self.settings, pairs.truth.generator).to(clean.device),
        )

    def training_step(self, batch: Batch | Pairs, index: int) -> Tensor:
        loss = self.prefer(batch) if isinstance(batch, Pairs) else self.loss(batch)
        # Sharded gradients are means over all processes; those that share tokens hold a part each, to be added up.
        each, share = self.settings.accumulate // self.mesh.data_parallel, self.mesh.scale.sequence_parallel
        self.manual_backward(loss * share / each)
        if (self.start // self.mesh.data_parallel + index + 1) % each == 0:
            if self.branches is not None:
                self.branches.drop_unused_gradients()
            step_optimizers(self, self.dit.parameters(), self.settings.clip_norm)
            self.ema.update_parameters(self.dit)
        told = self.mesh.mean(loss.detach())
        step = (
            self.start // self.mesh.data_parallel + index + 1
        ) // each  # where the curves stand, in a resumed run too
        self.log_dict({"loss": told, "step": float(step)}, prog_bar=True)
        return told

    def configure_optimizers(self) -> Any:
        settings = self.settings
        both = muon_and_adamw(
            self.dit, muon_lr=settings.muon_lr, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        return [
            with_schedule(
                each,
                settings.steps,
                settings.warmup_steps,
                self.start // settings.accumulate,
                constant=settings.schedule == "constant",
            )
            for each in both
        ]


def clip_batches(
    clips: Clips, base: BaseModel, settings: BaseTraining, start: int, mesh: Mesh = SINGLE_PROCESS
) -> ClipBatches:
    """The batches that are left of a training, of this process."""
    return ClipBatches(
        clips, base, latents=settings.clip_latents, batch=settings.batch,
        steps=range(start + mesh.data_rank, settings.steps * settings.accumulate, mesh.data_parallel), seed=settings.seed,
        crops=RandomCrops(
            steps=settings.crop_steps, full_frame_every=settings.full_frame_every,
            batch=settings.crop_batch, size=settings.crop_size,
        ),
        sampling=WindowSampling(
            voices=settings.voices, states=settings.states, expressive=settings.expressive,
            references=settings.references, reference_prob=settings.reference_prob,
            image_start_prob=settings.image_start_prob, noise_aug_prob=settings.noise_aug_prob,
        ),
        shorter=settings.shorter_latents, tokens=settings.batch_tokens,
        batches_per_step=settings.accumulate, cache_bytes=settings.loader_mb * 10**6,
    )  # fmt: skip


def paired(clips: Clips, base: BaseModel, settings: BaseTraining, start: int, progress: Progress | None) -> ReIterable:
    """The pairs that are left of a preference tuning; they are sampled from the model as it stands."""
    alone = clip_batches(clips, base, replace(settings, batch=1, crop_steps=0), start)
    pairs = collect(base.dit, alone, settings.preference, progress)
    steps = range(start, settings.steps * settings.accumulate)
    return ReIterable(lambda: pair_batches(pairs, alone, steps))


def freeze_all_but(dit: DiffusionTransformer, patterns: Sequence[str]) -> None:
    """Let only the weights learn whose name holds one of the patterns (regular expressions); none lets all.

    Raises:
        ValueError: a pattern that no name holds.
    """
    names = dict(dit.named_parameters())
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"train.trainable_params: no weight's name holds {pattern!r}; one is {next(iter(names))!r}"
            )
    for name, weight in names.items():
        weight.requires_grad = not patterns or any(re.search(pattern, name) for pattern in patterns)


def train_base(
    dataset: Path,
    folder: Path,
    settings: BaseTraining,
    progress: Progress | None = None,
    *,
    logger: Any = False,
    show: Show | None = None,
) -> dict[str, float]:
    """Train Base LPM on a dataset and write its model folder; a killed run goes on from its last saved state.

    Args:
        dataset: folder that curate wrote.
        folder: output; `state/` inside it holds the resume state until the end.
        settings: model and training.
        progress: shows the steps.
        logger: Lightning logger(s).
        show: keeps the videos of a validation.

    Returns:
        Metrics: the last loss (mean over 50 steps), steps, clips, and what the validation found.

    Raises:
        ValueError: the dataset is empty, too short or was encoded with another autoencoder.
    """
    with join_processes(settings.scale) as mesh:
        if not mesh.is_main:
            progress, logger, show = None, False, None
        return _train(dataset, folder, settings, progress, logger, mesh, show)


def _model(settings: BaseTraining, encoder: VideoAutoencoder, size_px: int, mesh: Mesh) -> BaseModel:
    """The model to be trained; its transformer is an empty shape but on the first process, which hands it out."""
    encoders = Path(settings.encoders) if settings.encoders else None
    execution = Execution(activation_checkpointing=settings.activation_checkpointing)
    device = "cpu" if mesh.is_main else "meta"
    base = BaseModel(settings.model, encoder, size_px, encoders, device=device, execution=execution)
    if settings.init_from and mesh.is_main:
        start_from(base.dit, Path(settings.init_from))
    freeze_all_but(base.dit, settings.trainable_params)
    if settings.lora.rank:
        named = [weight for weight in base.dit.parameters() if settings.trainable_params and weight.requires_grad]
        add_adapter(base.dit, ADAPTER, settings.lora)
        for weight in named:
            weight.requires_grad = True
    if settings.compile:
        for block in base.dit.blocks:
            block.compile()
    return base


def _train(
    dataset: Path, folder: Path, settings: BaseTraining, progress: Progress | None, logger: Any, mesh: Mesh,
    show: Show | None,
) -> dict[str, float]:  # fmt: skip
    torch.manual_seed(settings.seed)
    autoencoder = Path(settings.autoencoder) if settings.autoencoder else None
    encoder = load_autoencoder(autoencoder)
    about = read_dataset(dataset, encoder.digest)
    base = _model(settings, encoder, about["size_px"], mesh)
    state = ShardedCheckpoint(folder / "checkpoint", mesh)
    clips, held_out = read_clips(dataset, settings.loader_mb * 10**6).split(settings.validation.held_out_fraction)
    validation = (
        Validator(HeldOutWindows(held_out, base, settings), show, mesh) if settings.validation.every_steps else None
    )
    batches: Iterable[Any] = prefetched(
        clip_batches(clips, base, settings, state.step(), mesh), settings.loader_workers
    )
    preference = None
    if settings.preference.conditions:
        preference = PreferenceLoss(base.dit, settings.preference)
        batches = paired(clips, base, settings, state.step(), progress)
    module = BaseModule(base, settings, state.step(), preference, mesh)
    history = run(
        module, batches, settings.steps * settings.accumulate, state, settings.checkpoint_steps * settings.accumulate,
        description="train Base LPM", progress=progress, logger=logger,
        callbacks=[Throughput(base.config, mesh.scale), *([validation] if validation else [])],
        mesh=mesh, precision=settings.precision,
    )  # fmt: skip
    metrics = {"loss": history.mean(), "steps": float(settings.steps), "clips": float(len(clips))}
    if validation:
        metrics |= validation.measure(module.ema.module, settings.steps)  # type: ignore[arg-type]
    weights = full_weights(module.ema.module)
    if not mesh.is_main:
        return metrics
    save_model(
        folder,
        {"model": merged(weights, ADAPTER, settings.lora)},
        {"model": to_mapping(base.config), "size_px": base.size_px},
        {"dataset_digest": about["digest"], "settings": to_mapping(settings), "metrics": metrics},
    )
    copy_autoencoder(autoencoder, folder)
    if settings.encoders:
        copy_encoders(Path(settings.encoders), folder)
    shutil.rmtree(state.folder, ignore_errors=True)
    return metrics
