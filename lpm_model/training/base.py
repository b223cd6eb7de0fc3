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
from lpm_model.autoencoder import copy_autoencoder, load_autoencoder
from lpm_model.checkpoint import save_model
from lpm_model.config import to_mapping
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.encoders import copy_encoders
from lpm_model.losses import flow_matching_loss, training_weights
from lpm_model.sampler import BaseModel
from lpm_model.shards import start_from
from lpm_model.training.clips import Clips, read_clips
from lpm_model.training.config import BaseTraining
from lpm_model.training.data import Batch, ClipBatches, Draw, Squares, loaded, read_dataset
from lpm_model.training.loop import Again, StateFile, Track, muon_and_adamw, run, scheduled, take_step
from lpm_model.training.preference import Pairs, PreferenceLoss, collect, pair_batches
from lpm_model.training.throughput import Throughput
from lpm_model.training.validation import HeldOut, Show, Validator


def draw_sigmas(batch: int, frames: int, settings: BaseTraining, generator: torch.Generator) -> Tensor:
    """Noise levels [B, F]: latent 0 clean, the others one level a clip or, by chance, one each."""
    shared = torch.rand(batch, 1, generator=generator).expand(-1, frames)
    own = torch.rand(batch, frames, generator=generator)
    pick = torch.rand(batch, 1, generator=generator) < settings.independent_noise
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
        self, base: BaseModel, settings: BaseTraining, start: int, preference: PreferenceLoss | None = None
    ) -> None:
        super().__init__()
        self.preference = preference
        self.automatic_optimization = False  # two optimizers take every step together
        self.dit, self.settings, self.start = base.dit, settings, start
        self.average = AveragedModel(base.dit, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))

    def loss(self, batch: Batch) -> Tensor:
        """Flow matching on one batch."""
        clean, generator = batch.latents, batch.generator
        sigma = draw_sigmas(clean.shape[0], clean.shape[2], self.settings, generator)
        noise = torch.randn(clean.shape, generator=generator)
        conditions = drop_conditions(batch.conditions, self.settings.condition_dropout, generator)
        level = sigma[:, None, :, None, None]
        predicted = self.dit(flow.interpolate(clean, noise, level), sigma, conditions)
        weight = training_weights(clean, level, self.settings.motion_weight, self.dit.config.predicts)
        return flow_matching_loss(predicted, flow.velocity(clean, noise), weight)

    def prefer(self, pairs: Pairs) -> Tensor:
        """Preference on one pair, flow matching on its true window."""
        assert self.preference is not None
        clean = pairs.truth.latents
        return self.preference(
            self.dit, pairs, draw_sigmas(clean.shape[0], clean.shape[2], self.settings, pairs.truth.generator)
        )

    def training_step(self, batch: Batch | Pairs, index: int) -> Tensor:
        loss = self.prefer(batch) if isinstance(batch, Pairs) else self.loss(batch)
        self.manual_backward(loss / self.settings.accumulate)
        if (self.start + index + 1) % self.settings.accumulate == 0:
            take_step(self, self.dit.parameters(), self.settings.clip_norm)
            self.average.update_parameters(self.dit)
        step = (self.start + index + 1) // self.settings.accumulate  # where the curves stand, in a resumed run too
        self.log_dict({"loss": loss.detach(), "step": float(step)}, prog_bar=True)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        settings = self.settings
        both = muon_and_adamw(self.dit, settings.matrix_learning_rate, settings.learning_rate, settings.weight_decay)
        return [
            scheduled(
                each,
                settings.steps,
                settings.warmup_steps,
                self.start // settings.accumulate,
                constant=settings.schedule == "constant",
            )
            for each in both
        ]


def clip_batches(
    clips: Clips, base: BaseModel, settings: BaseTraining, start: int, rank: int = 0, world: int = 1
) -> ClipBatches:
    """The batches that are left of a training, for one of `world` processes that learn from different ones."""
    return ClipBatches(
        clips, base, latents=settings.clip_latents, batch=settings.batch,
        steps=range(start, settings.steps * settings.accumulate), seed=settings.seed,
        squares=Squares(
            steps=settings.crop_steps * settings.accumulate, whole_every=settings.whole_every,
            batch=settings.crop_batch, cells=settings.crop_cells,
        ),
        draw=Draw(
            voices=settings.voices, states=settings.states, expressive=settings.expressive,
            references=settings.references, reference_chance=settings.reference_chance,
            image_start=settings.image_start, disturbance=settings.disturbance,
        ),
        shorter=settings.shorter_latents, tokens=settings.batch_tokens, rank=rank, world=world,
        kept_bytes=settings.loader_mb * 10**6,
    )  # fmt: skip


def paired(clips: Clips, base: BaseModel, settings: BaseTraining, start: int, progress: Track | None) -> Again:
    """The pairs that are left of a preference tuning; they are sampled from the model as it stands."""
    alone = clip_batches(clips, base, replace(settings, batch=1, crop_steps=0), start)
    pairs = collect(base.dit, alone, settings.preference, progress)
    steps = range(start, settings.steps * settings.accumulate)
    return Again(lambda: pair_batches(pairs, alone, steps))


def freeze_all_but(dit: DiffusionTransformer, patterns: Sequence[str]) -> None:
    """Let only the weights learn whose name holds one of the patterns (regular expressions); none lets all.

    Raises:
        ValueError: a pattern that no name holds.
    """
    names = dict(dit.named_parameters())
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"train.trained: no weight's name holds {pattern!r}; one is {next(iter(names))!r}")
    for name, weight in names.items():
        weight.requires_grad = not patterns or any(re.search(pattern, name) for pattern in patterns)


def prepare(dit: DiffusionTransformer, settings: BaseTraining) -> None:
    """Give a fresh model the weights that training starts from, and its blocks what the settings say."""
    if settings.start:
        start_from(dit, Path(settings.start))
    freeze_all_but(dit, settings.trained)
    dit.recompute = settings.recompute
    if settings.compile:
        for block in dit.blocks:
            block.compile()


def train_base(
    dataset: Path,
    folder: Path,
    settings: BaseTraining,
    progress: Track | None = None,
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
    torch.manual_seed(settings.seed)
    autoencoder = Path(settings.autoencoder) if settings.autoencoder else None
    encoder = load_autoencoder(autoencoder)
    about = read_dataset(dataset, encoder.digest)
    encoders = Path(settings.encoders) if settings.encoders else None
    base = BaseModel(settings.model, encoder, about["size_px"], encoders)
    prepare(base.dit, settings)
    state = StateFile(folder / "state")
    clips, held_out = read_clips(dataset, settings.loader_mb * 10**6).split(settings.validation.held_out_share)
    validation = Validator(HeldOut(held_out, base, settings), show) if settings.validation.every_steps else None
    batches: Iterable[Any] = loaded(clip_batches(clips, base, settings, state.step()), settings.loader_workers)
    preference = None
    if settings.preference.conditions:
        preference = PreferenceLoss(base.dit, settings.preference)
        batches = paired(clips, base, settings, state.step(), progress)
    module = BaseModule(base, settings, state.step(), preference)
    history = run(
        module, batches, settings.steps * settings.accumulate, state, settings.checkpoint_steps * settings.accumulate,
        description="train Base LPM", progress=progress, clip_norm=None, logger=logger,
        callbacks=[Throughput(base.config), *([validation] if validation else [])],
    )  # fmt: skip
    metrics = {"loss": history.recent(), "steps": float(settings.steps), "clips": float(len(clips))}
    if validation:
        metrics |= validation.measure(module.average.module, settings.steps)  # type: ignore[arg-type]
    save_model(
        folder,
        {"model": module.average.module},
        {"model": to_mapping(base.config), "size_px": base.size_px},
        {"dataset_digest": about["digest"], "settings": to_mapping(settings), "metrics": metrics},
    )
    copy_autoencoder(autoencoder, folder)
    copy_encoders(encoders, folder)
    shutil.rmtree(state.path.parent, ignore_errors=True)
    return metrics
