"""Training of Base LPM: flow matching, or preference tuning of an earlier stage.

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
from lpm_model.lora import add_adapter, merge_adapter
from lpm_model.losses import flow_matching_loss, training_weights
from lpm_model.precision import native_dtype
from lpm_model.progress import Progress
from lpm_model.sampler import BaseModel
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.base.preference import Pairs, PreferenceLoss, collect_pairs, pair_batches
from lpm_model.training.base.validation import HeldOutWindows, SaveVideo, Validator
from lpm_model.training.engine.checkpoints import ShardedCheckpoint
from lpm_model.training.engine.data import Batch, ClipBatches, RandomCrops, WindowSampling, prefetched, read_dataset
from lpm_model.training.engine.launch import SINGLE_PROCESS, Mesh, join_processes
from lpm_model.training.engine.loop import ReIterable, run
from lpm_model.training.engine.optimizers import muon_and_adamw, step_optimizers, with_schedule
from lpm_model.training.engine.shard_reader import Clips, read_clips
from lpm_model.training.engine.sharding import Branches, full_weights, sequence_group, shard
from lpm_model.training.engine.throughput import Throughput
from lpm_model.weight_shards import init_weights_from

ADAPTER = "base"
"""Name of the LoRA adapter."""


def draw_sigmas(batch: int, frames: int, settings: BaseTraining, generator: torch.Generator) -> Tensor:
    """Draw noise levels [B, F]: 0 for latent 0; for the others one level per clip or, at random, one each."""
    shared = torch.rand(batch, 1, generator=generator).expand(-1, frames)
    own = torch.rand(batch, frames, generator=generator)
    pick = torch.rand(batch, 1, generator=generator) < settings.independent_noise_prob
    sigma = flow.shift_sigma(torch.where(pick, own, shared), settings.sigma_shift)
    return torch.cat([torch.zeros(batch, 1), sigma[:, 1:]], dim=1)


def drop_conditions(conditions: Conditions, probability: float, generator: torch.Generator) -> Conditions:
    """Drop branches at random for the whole batch: each with probability / 2, or all but the references at once."""
    draws = torch.rand(5, generator=generator)
    if draws[4] < probability:
        return conditions.without("text", "speak", "listen")
    names = ("text", "speak", "listen", "references")
    return conditions.without(*(name for name, draw in zip(names, draws, strict=False) if draw < probability / 2))


class BaseModule(lightning.LightningModule):
    """The trained model and its EMA."""

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
        self.automatic_optimization = False  # two optimizers take every step together
        self.dit, self.settings, self.start = base.dit, settings, start
        self.ema = AveragedModel(base.dit, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))

    def configure_model(self) -> None:
        """Shard weights and EMA over the processes, if there are several."""
        if not self.mesh.is_distributed or self.branches is not None:
            return
        averaged: DiffusionTransformer = self.ema.module  # type: ignore[assignment]
        dtype = native_dtype(self.mesh.device, self.settings.precision)
        for transformer in (self.dit, averaged):
            shard(transformer, self.mesh, bf16=dtype == torch.bfloat16)
        self.dit.set_execution(replace(self.dit.execution, sequence_group=sequence_group(self.mesh)))
        self.branches = Branches(self.dit, self.mesh.device)

    def loss(self, batch: Batch) -> Tensor:
        """Return the flow-matching loss of one batch."""
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

    def preference_loss(self, pairs: Pairs) -> Tensor:
        """Return the preference loss of one pair, with flow matching on its ground truth."""
        assert self.preference is not None
        clean = pairs.truth.latents
        return self.preference(
            self.dit,
            pairs,
            draw_sigmas(clean.shape[0], clean.shape[2], self.settings, pairs.truth.generator).to(clean.device),
        )

    def training_step(self, batch: Batch | Pairs, index: int) -> Tensor:
        loss = self.preference_loss(batch) if isinstance(batch, Pairs) else self.loss(batch)
        # Sharded gradients are means over all processes; processes of a sequence group hold partial sums.
        accumulate, parts = self.settings.accumulate // self.mesh.data_parallel, self.mesh.scale.sequence_parallel
        self.manual_backward(loss * parts / accumulate)
        batches = self.start // self.mesh.data_parallel + index + 1  # of this process, before a resume too
        if batches % accumulate == 0:
            if self.branches is not None:
                self.branches.drop_unused_gradients()
            step_optimizers(self, self.dit.parameters(), self.settings.clip_norm)
            self.ema.update_parameters(self.dit)
        mean_loss = self.mesh.mean(loss.detach())
        self.log_dict({"loss": mean_loss, "step": float(batches // accumulate)}, prog_bar=True)
        return mean_loss

    def configure_optimizers(self) -> Any:
        """Build Muon and AdamW with their schedules: the learning rates of the settings are used here and only here."""
        settings = self.settings
        optimizers = muon_and_adamw(
            self.dit, muon_lr=settings.muon_lr, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        return [
            with_schedule(
                optimizer,
                settings.steps,
                settings.warmup_steps,
                self.start // settings.accumulate,
                constant=settings.schedule == "constant",
            )
            for optimizer in optimizers
        ]


def clip_batches(
    clips: Clips, base: BaseModel, settings: BaseTraining, start: int, mesh: Mesh = SINGLE_PROCESS
) -> ClipBatches:
    """Return the remaining batches of this process."""
    return ClipBatches(
        clips, base, latents=settings.clip_latents, batch=settings.batch,
        steps=range(start + mesh.data_rank, settings.steps * settings.accumulate, mesh.data_parallel),
        seed=settings.seed,
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


def preference_batches(
    clips: Clips, base: BaseModel, settings: BaseTraining, start: int, progress: Progress | None
) -> ReIterable:
    """Sample preference pairs from the initial model and return their remaining batches."""
    singles = clip_batches(clips, base, replace(settings, batch=1, crop_steps=0), start)
    pairs = collect_pairs(base.dit, singles, settings.preference, progress)
    steps = range(start, settings.steps * settings.accumulate)
    return ReIterable(lambda: pair_batches(pairs, singles, steps))


def freeze_all_but(dit: DiffusionTransformer, patterns: Sequence[str]) -> None:
    """Freeze all parameters whose name matches none of the patterns (regular expressions); no pattern freezes none.

    Raises:
        ValueError: a pattern matches no parameter name.
    """
    names = dict(dit.named_parameters())
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"train.trainable_params: no parameter name matches {pattern!r}; one is {next(iter(names))!r}"
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
    save_video: SaveVideo | None = None,
) -> dict[str, float]:
    """Train Base LPM on a dataset and write its model folder; a killed run resumes from its last checkpoint.

    Args:
        dataset: folder that curate wrote.
        folder: output; `checkpoint/` inside it is deleted at the end.
        settings: settings of model and training.
        progress: shows the steps.
        logger: Lightning logger(s).
        save_video: called with each validation video.

    Returns:
        Metrics: the last loss (mean over 50 steps), steps, clips, and those of the validation.

    Raises:
        ValueError: the dataset is empty, too short or was encoded with another autoencoder.
    """
    with join_processes(settings.scale) as mesh:
        if not mesh.is_main:
            progress, logger, save_video = None, False, None
        return _train(dataset, folder, settings, progress, logger, mesh, save_video)


def build_model(settings: BaseTraining, encoder: VideoAutoencoder, size_px: int, mesh: Mesh) -> BaseModel:
    """Build the model; its transformer has weights on the main process only, which distributes them."""
    encoders = Path(settings.encoders) if settings.encoders else None
    execution = Execution(activation_checkpointing=settings.activation_checkpointing)
    device = "cpu" if mesh.is_main else "meta"
    base = BaseModel(settings.model, encoder, size_px, encoders, device=device, execution=execution)
    if settings.init_from and mesh.is_main:
        init_weights_from(base.dit, Path(settings.init_from))
    freeze_all_but(base.dit, settings.trainable_params)
    if settings.lora.rank:
        matched = [weight for weight in base.dit.parameters() if settings.trainable_params and weight.requires_grad]
        add_adapter(base.dit, ADAPTER, settings.lora)
        for weight in matched:
            weight.requires_grad = True
    if settings.compile:
        for block in base.dit.blocks:
            block.compile()
    return base


def _train(
    dataset: Path, folder: Path, settings: BaseTraining, progress: Progress | None, logger: Any, mesh: Mesh,
    save_video: SaveVideo | None,
) -> dict[str, float]:  # fmt: skip
    torch.manual_seed(settings.seed)
    autoencoder = Path(settings.autoencoder) if settings.autoencoder else None
    encoder = load_autoencoder(autoencoder)
    about = read_dataset(dataset, encoder.digest)
    base = build_model(settings, encoder, about["size_px"], mesh)
    checkpoint = ShardedCheckpoint(folder / "checkpoint", mesh)
    clips, held_out = read_clips(dataset, settings.loader_mb * 10**6).split(settings.validation.held_out_fraction)
    validation = (
        Validator(HeldOutWindows(held_out, base, settings), save_video, mesh)
        if settings.validation.every_steps
        else None
    )
    batches: Iterable[Any] = prefetched(
        clip_batches(clips, base, settings, checkpoint.step(), mesh), settings.loader_workers
    )
    preference = None
    if settings.preference.conditions:
        preference = PreferenceLoss(base.dit, settings.preference)
        batches = preference_batches(clips, base, settings, checkpoint.step(), progress)
    module = BaseModule(base, settings, checkpoint.step(), preference, mesh)
    history = run(
        module, batches, settings.steps * settings.accumulate, checkpoint,
        settings.checkpoint_steps * settings.accumulate,
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
        {"model": merge_adapter(weights, ADAPTER, settings.lora)},
        {"model": to_mapping(base.config), "size_px": base.size_px},
        {"dataset_digest": about["digest"], "settings": to_mapping(settings), "metrics": metrics},
    )
    copy_autoencoder(autoencoder, folder)
    if settings.encoders:
        copy_encoders(Path(settings.encoders), folder)
    shutil.rmtree(checkpoint.folder, ignore_errors=True)
    return metrics
