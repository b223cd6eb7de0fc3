"""Validation of Base LPM on held-out people: loss, audio-conditioning ablation, sample videos.

The conditioning gap of a voice is the rise of the loss when that voice is replaced with that of another clip, for the
same noise on the same windows: the person's own audio where the person speaks, the partner's where the person listens.

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
from lpm_model.precision import native_autocast
from lpm_model.sampler import load_base, sample_window
from lpm_model.training.base.config import VOICES, BaseTraining, Validation
from lpm_model.training.engine.data import Batch, ClipBatches, Window, WindowSampling, read_dataset, step_generator
from lpm_model.training.engine.launch import SINGLE_PROCESS, Mesh
from lpm_model.training.engine.shard_reader import Clips, read_clips

log = logging.getLogger(__name__)
MIN_STATE_FRACTION = 0.5
"""Minimum fraction of a window's frames in the state of the replaced voice."""
BOOTSTRAP_SAMPLES = 4000
WINDOWS_PER_BATCH = 4
"""Windows in one forward pass."""
SaveVideo = Callable[[str, NDArray[np.uint8], NDArray[np.int16]], None]
"""Stores a video: its name, frames [T, H, W, 3] and audio samples [1000 T]."""


@dataclass(frozen=True, slots=True)
class ConditioningGap:
    """The rise of the loss when a voice is replaced with another clip's."""

    loss: float
    """Mean loss with the correct voice."""
    mean: float
    """Mean rise."""
    low: float
    """Lower end of the 90 % bootstrap interval of the mean rise."""
    high: float
    """Upper end of the interval."""
    windows: int
    clips: int


def bootstrap(differences: Tensor, groups: Sequence[str], level: float = 0.9) -> tuple[float, float]:
    """Return the percentile interval of the mean of paired differences [N]; groups are resampled as a whole.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 8.
    """
    names = sorted(set(groups))
    member = torch.tensor([names.index(group) for group in groups])
    sums = torch.zeros(len(names)).index_add_(0, member, differences)
    counts = torch.zeros(len(names)).index_add_(0, member, torch.ones(len(member)))
    drawn = torch.randint(len(names), (BOOTSTRAP_SAMPLES, len(names)), generator=torch.Generator().manual_seed(0))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    ends = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2]))
    return float(ends[0]), float(ends[1])


class HeldOutWindows:
    """Windows of held-out clips in which people speak, and in which they listen.

    Args:
        clips: held-out clips.
        model: provides the encoders of the conditions and the decoder of the videos.
        settings: settings of the training.

    Raises:
        ValueError: fewer than two clips, so that no voice can be replaced.
    """

    def __init__(self, clips: Clips, model: CharacterModel, settings: BaseTraining) -> None:
        self.model, self.settings = model, settings
        self.source = ClipBatches(
            clips, model, latents=settings.clip_latents, batch=1, steps=range(0), seed=settings.seed,
            sampling=WindowSampling(voices=settings.voices), cache_bytes=settings.loader_mb * 10**6,
        )  # fmt: skip
        self.sets = {voice: chosen for voice in settings.voices if (chosen := self._choose(voice))}
        if not self.sets:
            raise ValueError(
                "validation needs two held-out clips of people who speak or listen: raise held_out_fraction"
            )

    def _choose(self, voice: str) -> list[tuple[int, int]]:
        """Return clip and start of windows in which the person speaks or listens; empty for fewer than two clips."""
        latents, sampling = self.settings.clip_latents, WindowSampling(states=(voice,))
        found = [
            (place, start)
            for place, facts in enumerate(self.source.facts)
            if facts.latents >= latents
            for start, fraction in enumerate(sampling.weights(facts, latents).tolist())
            if start % (latents - 1) == 0 and fraction >= MIN_STATE_FRACTION
        ]
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.settings.seed)).tolist()
        chosen = [found[index] for index in order[: self.settings.validation.windows]]
        if len({place for place, _ in chosen}) < 2:
            log.warning("fewer than two held-out clips in which people %s: its conditioning gap is not measured", voice)
            return []
        return chosen

    def exchange_partner(self, chosen: Sequence[tuple[int, int]], index: int) -> tuple[int, int]:
        """Return the next window of another person or, failing that, of another clip."""
        facts, place = self.source.facts, chosen[index][0]
        following = [*chosen[index + 1 :], *chosen[:index]]
        person = next((window for window in following if facts[window[0]].group != facts[place].group), None)
        return person or next(window for window in following if window[0] != place)

    def _batch(self, chosen: Sequence[tuple[int, int]], purpose: str) -> Batch:
        """Batch windows of one grid, without noise augmentation."""
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
        """Return the indices of the windows of each forward pass."""
        by_grid: dict[tuple[int, int], list[int]] = {}
        for number, (place, _) in enumerate(chosen):
            by_grid.setdefault(self.source.facts[place].grid, []).append(number)
        return [
            own[i : i + WINDOWS_PER_BATCH] for own in by_grid.values() for i in range(0, len(own), WINDOWS_PER_BATCH)
        ]

    @torch.no_grad()
    def conditioning_gap(self, dit: DiffusionTransformer, voice: str) -> ConditioningGap:
        """Measure the conditioning gap of a voice."""
        chosen = self.sets[voice]
        correct, exchanged = torch.zeros(len(chosen)), torch.zeros(len(chosen))
        for numbers in self._groups(chosen):
            batch = self._batch([chosen[number] for number in numbers], voice)
            other = self._batch([self.exchange_partner(chosen, number) for number in numbers], "partner")
            wrong = replace(batch.conditions, **{voice: getattr(other.conditions, voice)})
            level = flow.shift_sigma((torch.tensor(numbers) + 0.5) / len(chosen), self.settings.sigma_shift)
            noise = torch.randn(batch.latents.shape, generator=batch.generator)
            correct[numbers] = self._losses(dit, batch, level, noise)
            exchanged[numbers] = self._losses(dit, replace(batch, conditions=wrong), level, noise)
        rise = exchanged - correct
        keys = [self.source.facts[place].key for place, _ in chosen]
        return ConditioningGap(
            float(correct.mean()), float(rise.mean()), *bootstrap(rise, keys), len(chosen), len(set(keys))
        )

    def _losses(self, dit: DiffusionTransformer, batch: Batch, level: Tensor, noise: Tensor) -> Tensor:
        """Return the training loss of each window, [N], at noise levels [N]."""
        device = dit.patch.weight.device
        batch, noise = batch.to(device), noise.to(device)
        sigma = level.to(device)[:, None].repeat(1, noise.shape[2])
        sigma[:, 0] = 0
        clean, levels = batch.latents, sigma[:, None, :, None, None]
        with native_autocast(device):
            predicted = dit(flow.interpolate(clean, noise, levels), sigma, batch.conditions)
        weight = training_weights(clean, levels, self.settings.motion_weight, dit.config.predicts)
        rows = zip(predicted, flow.velocity(clean, noise), weight, strict=True)
        return torch.stack([flow_matching_loss(*(x[None] for x in row)) for row in rows]).cpu()

    @torch.no_grad()
    def video(self, dit: DiffusionTransformer, voice: str, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        """Render a window from its first frame and audio, with the ground truth on the left.

        Returns:
            Frames [4 (F - 1), H, 2 W, 3] and audio samples [4000 (F - 1)].
        """
        settings, window = self.settings.validation, self.sets[voice][number]
        batch = self._batch([window], "video").to(dit.patch.weight.device)
        image = batch.latents[:, :, :1]
        with native_autocast(image.device):
            sampled, _ = sample_window(
                dit, image, batch.latents.shape[2], batch.conditions,
                steps=settings.sampler_steps, guidance=settings.guidance, generator=batch.generator,
            )  # fmt: skip
        rendered = []
        for latents in (batch.latents, sampled):
            clip = torch.cat([image, self.model.codec.decode(latents[:, :, 1:], image)], dim=2)
            rendered.append(to_frames(self.model.autoencoder.decode(clip.float().cpu()))[0, 1:].numpy())
        place, start = window
        span = slice(start * SAMPLES_PER_LATENT, (start + batch.latents.shape[2] - 1) * SAMPLES_PER_LATENT)
        audio = self.source.voices(self.source.clips[place], False)[:, span].sum(0).clamp(-1, 1)
        return np.concatenate(rendered, axis=2), (audio * 32767).to(torch.int16).numpy()


class Validator(Callback):
    """Validates the EMA on held-out people every `validation.every_steps` steps and stores videos of them.

    All processes measure the same windows together; the main one has `save_video`.
    """

    def __init__(self, held_out: HeldOutWindows, save_video: SaveVideo | None, mesh: Mesh = SINGLE_PROCESS) -> None:
        self.held_out, self.save_video, self.mesh = held_out, save_video, mesh
        self.settings = held_out.settings
        self.step, self.metrics = 0, dict[str, float]()

    def measure(self, dit: DiffusionTransformer, step: int) -> dict[str, float]:
        """Return `validation_loss` and the conditioning gaps after `step` steps, and store the videos."""
        if self.step == step:
            return self.metrics
        was_training = dit.training
        dit.eval()
        gaps = {voice: self.held_out.conditioning_gap(dit, voice) for voice in self.held_out.sets}
        self.step, self.metrics = step, gap_metrics(gaps)
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items()))
        for voice, number in self._video_windows():
            video = self.held_out.video(dit, voice, number)
            if self.save_video is not None:
                self.save_video(f"step-{step:06d}-{voice}-{number}", *video)
        dit.train(was_training)
        return self.metrics

    def _video_windows(self) -> list[tuple[str, int]]:
        if self.save_video is None and not self.mesh.is_distributed:
            return []
        windows = [(voice, n) for n in range(self.settings.validation.windows) for voice in self.held_out.sets]
        return [(voice, n) for voice, n in windows if n < len(self.held_out.sets[voice])][
            : self.settings.validation.videos
        ]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        start: int = pl_module.start  # type: ignore[assignment]
        step, rest = divmod(start + self.mesh.data_parallel * (batch_idx + 1), self.settings.accumulate)
        if rest or (step % self.settings.validation.every_steps and step != self.settings.steps):
            return
        metrics = self.measure(pl_module.ema.module, step)  # type: ignore[arg-type, union-attr]
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)


def gap_metrics(gaps: dict[str, ConditioningGap]) -> dict[str, float]:
    """Return the metrics of the gaps: `validation_loss` over all windows, and VOICE_conditioning_gap with interval."""
    windows = sum(gap.windows for gap in gaps.values())
    metrics = {"validation_loss": math.fsum(gap.loss * gap.windows for gap in gaps.values()) / windows}
    for voice in VOICES:
        if voice in gaps:
            gap = gaps[voice]
            metrics |= {
                f"{voice}_conditioning_gap": gap.mean,
                f"{voice}_conditioning_gap_low": gap.low,
                f"{voice}_conditioning_gap_high": gap.high,
            }
    return metrics


def conditioning_gaps(folder: Path, dataset: Path, windows: int) -> dict[str, ConditioningGap]:
    """Measure the conditioning gap of each voice in a trained Base LPM, on clips that it was not trained on.

    Args:
        folder: of the model.
        dataset: the training dataset, if people of it were held out, or another one.
        windows: maximum number for each voice.

    Raises:
        ValueError: the model was trained on all clips of the dataset, or on latents of another autoencoder.
    """
    # Autocast leaves norms in float32, as in training; torch warns about it once for each kind.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    base = load_base(folder, torch.float32)
    about = read_dataset(dataset, base.autoencoder.digest)
    provenance = json.loads((folder / "provenance.json").read_text())
    settings = from_mapping(BaseTraining, provenance["settings"])
    clips = read_clips(dataset)
    if provenance["dataset_digest"] == about["digest"]:
        fraction = settings.validation.held_out_fraction
        if not fraction:
            raise ValueError(
                f"{folder} was trained on every clip of {dataset}: pass another --dataset (such as one from "
                "`lpm ingest ingest.performer.bank=heldout` and `lpm curate`), or train with "
                "train.validation.held_out_fraction=0.1"
            )
        _, clips = clips.split(fraction)
    held_out = HeldOutWindows(clips, base, replace(settings, validation=Validation(windows=windows)))
    return {voice: held_out.conditioning_gap(base.dit, voice) for voice in held_out.sets}
