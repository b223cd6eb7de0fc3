"""What Base LPM makes of people it has not learned from: its loss, what each voice is worth to it, sample videos.

A voice is worth what the loss gains when it is exchanged for another clip's, with the same noise on the same windows:
the own voice where the person speaks, the other's voice where the person listens.

N windows, F latent frames of each.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor

from lpm_model import flow
from lpm_model.character import CharacterModel, to_frames
from lpm_model.config import SAMPLES_PER_LATENT, from_mapping
from lpm_model.dit import DiffusionTransformer
from lpm_model.losses import flow_matching_loss, training_weights
from lpm_model.precision import products
from lpm_model.sampler import load_base, sample_window
from lpm_model.training.config import VOICES, BaseTraining, Validation
from lpm_model.training.engine.data import Batch, ClipBatches, Draw, Window, read_dataset, step_generator
from lpm_model.training.engine.launch import ALONE, Mesh
from lpm_model.training.engine.shard_reader import Clips, read_clips

log = logging.getLogger(__name__)
LEAST_SHARE = 0.5
"""Least share of a window's frames in the state whose voice is exchanged."""
RESAMPLES = 4000
"""Of the bootstrap."""
TOGETHER = 4
"""Windows in one forward pass."""
Show = Callable[[str, NDArray[np.uint8], NDArray[np.int16]], None]
"""Keeps a video: its name, frames [T, H, W, 3] and sound [1000 T]."""


@dataclass(frozen=True, slots=True)
class Gap:
    """How much the loss rises when a voice is exchanged."""

    right: float
    """Mean loss with the right voice."""
    mean: float
    """Mean rise."""
    low: float
    """The interval that holds it in 90 % of resamples: its lower end ..."""
    high: float
    """... and its upper one."""
    windows: int
    clips: int


def bootstrap(differences: Tensor, groups: Sequence[str], level: float = 0.9) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences [N]; windows of a group are drawn together.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 8.
    """
    names = sorted(set(groups))
    member = torch.tensor([names.index(group) for group in groups])
    sums = torch.zeros(len(names)).index_add_(0, member, differences)
    counts = torch.zeros(len(names)).index_add_(0, member, torch.ones(len(member)))
    drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=torch.Generator().manual_seed(0))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    ends = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2]))
    return float(ends[0]), float(ends[1])


class HeldOut:
    """Windows of clips that a training never sees, in which people speak, and in which they listen.

    Args:
        clips: held out.
        model: its encoders make the conditions; its decoder the videos.
        settings: of the training.

    Raises:
        ValueError: no voice can be exchanged.
    """

    def __init__(self, clips: Clips, model: CharacterModel, settings: BaseTraining) -> None:
        self.model, self.settings = model, settings
        self.source = ClipBatches(
            clips, model, latents=settings.clip_latents, batch=1, steps=range(0), seed=settings.seed,
            draw=Draw(voices=settings.voices), kept_bytes=settings.loader_mb * 10**6,
        )  # fmt: skip
        self.sets = {voice: chosen for voice in settings.voices if (chosen := self._choose(voice))}
        if not self.sets:
            raise ValueError("validation needs two held-out clips of people who speak or listen: raise held_out_fraction")

    def _choose(self, voice: str) -> list[tuple[int, int]]:
        """Clip and start of windows in which the person does what the voice is for; empty where clips are missing."""
        latents, draw = self.settings.clip_latents, Draw(states=(voice,))
        found = [
            (place, start)
            for place, facts in enumerate(self.source.facts)
            if facts.latents >= latents
            for start, share in enumerate(draw.weights(facts, latents).tolist())
            if start % (latents - 1) == 0 and share >= LEAST_SHARE
        ]
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.settings.seed)).tolist()
        chosen = [found[index] for index in order[: self.settings.validation.windows]]
        if len({place for place, _ in chosen}) < 2:
            log.warning("fewer than two held-out clips in which people %s: what that voice is worth stays open", voice)
            return []
        return chosen

    def _partner(self, chosen: Sequence[tuple[int, int]], index: int) -> tuple[int, int]:
        """The next window of another person, else of another clip."""
        facts, place = self.source.facts, chosen[index][0]
        following = [*chosen[index + 1 :], *chosen[:index]]
        person = next((window for window in following if facts[window[0]].group != facts[place].group), None)
        return person or next(window for window in following if window[0] != place)

    def _batch(self, chosen: Sequence[tuple[int, int]], purpose: str) -> Batch:
        """Windows of clips of one grid, undisturbed."""
        latents, generator = self.settings.clip_latents, step_generator(self.settings.seed, chosen[0][0], purpose)
        rows, starts = [self.source.clips[place] for place, _ in chosen], [start for _, start in chosen]
        cut = [clip.latents[:, start : start + latents] for clip, start in zip(rows, starts, strict=True)]
        return Batch(
            windows=tuple(Window(clip.key, at, latents, (False, False)) for clip, at in zip(rows, starts, strict=True)),
            latents=self.model.codec.encode(torch.from_numpy(np.stack(cut)).float()),
            conditions=self.source.conditions(rows, starts, latents, [[False] * len(rows)] * 2, generator),
            generator=generator,
        )

    def _groups(self, chosen: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Numbers of windows that go through the model together."""
        by_grid: dict[tuple[int, int], list[int]] = {}
        for number, (place, _) in enumerate(chosen):
            by_grid.setdefault(self.source.facts[place].grid, []).append(number)
        return [own[i : i + TOGETHER] for own in by_grid.values() for i in range(0, len(own), TOGETHER)]

    @torch.no_grad()
    def gap(self, dit: DiffusionTransformer, voice: str) -> Gap:
        """What a voice is worth to a model."""
        chosen = self.sets[voice]
        right, exchanged = torch.zeros(len(chosen)), torch.zeros(len(chosen))
        for numbers in self._groups(chosen):
            batch = self._batch([chosen[number] for number in numbers], voice)
            other = self._batch([self._partner(chosen, number) for number in numbers], "partner")
            wrong = replace(batch.conditions, **{voice: getattr(other.conditions, voice)})
            level = flow.shift_sigma((torch.tensor(numbers) + 0.5) / len(chosen), self.settings.sigma_shift)
            noise = torch.randn(batch.latents.shape, generator=batch.generator)
            right[numbers] = self._losses(dit, batch, level, noise)
            exchanged[numbers] = self._losses(dit, replace(batch, conditions=wrong), level, noise)
        rise = exchanged - right
        keys = [self.source.facts[place].key for place, _ in chosen]
        return Gap(float(right.mean()), float(rise.mean()), *bootstrap(rise, keys), len(chosen), len(set(keys)))

    def _losses(self, dit: DiffusionTransformer, batch: Batch, level: Tensor, noise: Tensor) -> Tensor:
        """The training's loss of each window, [N]; level [N]."""
        device = dit.patch.weight.device
        batch, noise = batch.to(device), noise.to(device)
        sigma = level.to(device)[:, None].repeat(1, noise.shape[2])
        sigma[:, 0] = 0
        clean, levels = batch.latents, sigma[:, None, :, None, None]
        with products(device):
            predicted = dit(flow.interpolate(clean, noise, levels), sigma, batch.conditions)
        weight = training_weights(clean, levels, self.settings.motion_weight, dit.config.predicts)
        rows = zip(predicted, flow.velocity(clean, noise), weight, strict=True)
        return torch.stack([flow_matching_loss(*(x[None] for x in row)) for row in rows]).cpu()

    @torch.no_grad()
    def video(self, dit: DiffusionTransformer, voice: str, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        """A window beside what the model makes of its first frame and its voices: [4 (F - 1), H, 2 W, 3], its sound."""
        settings, window = self.settings.validation, self.sets[voice][number]
        batch = self._batch([window], "video").to(dit.patch.weight.device)
        image = batch.latents[:, :, :1]
        with products(image.device):
            made, _ = sample_window(
                dit, image, batch.latents.shape[2], batch.conditions,
                steps=settings.sampler_steps, guidance=settings.guidance, generator=batch.generator,
            )  # fmt: skip
        pictures = []
        for latents in (batch.latents, made):
            whole = torch.cat([image, self.model.codec.decode(latents[:, :, 1:], image)], dim=2)
            pictures.append(to_frames(self.model.autoencoder.decode(whole.float().cpu()))[0, 1:].numpy())
        place, start = window
        span = slice(start * SAMPLES_PER_LATENT, (start + batch.latents.shape[2] - 1) * SAMPLES_PER_LATENT)
        sound = self.source.voices(self.source.clips[place], False)[:, span].sum(0).clamp(-1, 1)
        return np.concatenate(pictures, axis=2), (sound * 32767).to(torch.int16).numpy()


class Validator(Callback):
    """Measures the weight average on held-out people every so many steps, and keeps videos of them.

    Several processes measure together, the same windows; `show` is the first one's.
    """

    def __init__(self, held_out: HeldOut, show: Show | None, mesh: Mesh = ALONE) -> None:
        self.held_out, self.show, self.mesh = held_out, show, mesh
        self.settings = held_out.settings
        self.step, self.found = 0, dict[str, float]()

    def measure(self, dit: DiffusionTransformer, step: int) -> dict[str, float]:
        """Figures after so many steps: `validation_loss` and both gaps; the videos are shown."""
        if self.step == step:
            return self.found
        was_training = dit.training
        dit.eval()
        gaps = {voice: self.held_out.gap(dit, voice) for voice in self.held_out.sets}
        self.step, self.found = step, figures_of(gaps)
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in self.found.items()))
        for voice, number in self._shown():
            video = self.held_out.video(dit, voice, number)
            if self.show is not None:
                self.show(f"step-{step:06d}-{voice}-{number}", *video)
        dit.train(was_training)
        return self.found

    def _shown(self) -> list[tuple[str, int]]:
        if self.show is None and not self.mesh.several:
            return []
        turns = [(voice, n) for n in range(self.settings.validation.windows) for voice in self.held_out.sets]
        return [turn for turn in turns if turn[1] < len(self.held_out.sets[turn[0]])][: self.settings.validation.videos]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        start: int = pl_module.start  # type: ignore[assignment]
        step, rest = divmod(start + self.mesh.data * (batch_idx + 1), self.settings.accumulate)
        if rest or (step % self.settings.validation.every_steps and step != self.settings.steps):
            return
        found = self.measure(pl_module.average.module, step)  # type: ignore[arg-type, union-attr]
        for logger in trainer.loggers:
            logger.log_metrics(found, step)


def figures_of(gaps: dict[str, Gap]) -> dict[str, float]:
    """Named numbers of the gaps: `validation_loss` is over all windows."""
    windows = sum(gap.windows for gap in gaps.values())
    figures = {"validation_loss": math.fsum(gap.right * gap.windows for gap in gaps.values()) / windows}
    for voice in VOICES:
        if voice in gaps:
            gap = gaps[voice]
            figures |= {f"{voice}_gap": gap.mean, f"{voice}_gap_low": gap.low, f"{voice}_gap_high": gap.high}
    return figures


def voice_gaps(folder: Path, dataset: Path, windows: int) -> dict[str, Gap]:
    """What each voice is worth to a trained Base LPM on clips that its training did not see.

    Args:
        folder: of the model.
        dataset: the one it was trained on, of which it held people out, or another one.
        windows: most for each voice.

    Raises:
        ValueError: the model has seen all of the dataset, or does not fit it.
    """
    # Autocast leaves norms in float32, as in training; torch warns of each kind once.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    base = load_base(folder, torch.float32)
    about = read_dataset(dataset, base.autoencoder.digest)
    provenance = json.loads((folder / "provenance.json").read_text())
    trained = from_mapping(BaseTraining, provenance["settings"])
    clips = read_clips(dataset)
    if provenance["dataset_digest"] == about["digest"]:
        share = trained.validation.held_out_fraction
        if not share:
            raise ValueError(
                f"{folder} was trained on every clip of {dataset}: give --dataset another one (such as "
                "`lpm ingest ingest.performer.bank=heldout` and `lpm curate` make), or train with "
                "train.validation.held_out_fraction=0.1"
            )
        _, clips = clips.split(share)
    held_out = HeldOut(clips, base, replace(trained, validation=Validation(windows=windows)))
    return {voice: held_out.gap(base.dit, voice) for voice in held_out.sets}
