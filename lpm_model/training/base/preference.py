"""Preference tuning (DPO) of Base LPM on pairs of its own samples.

A pair needs Pareto dominance (paper section 3.4): the chosen sample is better than the rejected one in at least one
score and worse in none; conditions without such a pair are skipped. The loss is direct preference optimisation for
diffusion (https://arxiv.org/abs/2311.12908) on velocities, plus flow matching on ground-truth clips against colour
shift.

S samples of a condition, F latent frames of a window.
"""

import copy
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lpm_model import flow
from lpm_model.dit import DiffusionTransformer
from lpm_model.losses import motion_weights
from lpm_model.progress import Progress
from lpm_model.sampler import sample_window
from lpm_model.training.base.config import Preference
from lpm_model.training.engine.data import Batch, ClipBatches

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pairs:
    """A batch of preference pairs."""

    truth: Batch
    """The ground-truth clips, whose conditions the pairs were sampled under."""
    chosen: Tensor
    """[B, channels, F, h, w]."""
    rejected: Tensor
    """[B, channels, F, h, w]."""

    def to(self, device: torch.device, **_: Any) -> "Pairs":
        """Return the pairs on another device."""
        return Pairs(truth=self.truth.to(device), chosen=self.chosen.to(device), rejected=self.rejected.to(device))

    @property
    def latents(self) -> Tensor:
        """[B, channels, F, h, w] of the ground truth."""
        return self.truth.latents

    @property
    def keys(self) -> tuple[str, ...]:
        """The clip of each row."""
        return self.truth.keys


def score_samples(samples: Tensor, truth: Tensor) -> Tensor:
    """Score samples against the ground truth, higher is better.

    Args:
        samples: [S, channels, F, h, w].
        truth: [1, channels, F, h, w].

    Returns:
        [S, 3] for lips, amount of motion, colour.
    """
    weight = motion_weights(truth, 15.0)
    lips = -(weight * (samples - truth).square()).mean(dim=(1, 2, 3, 4))
    speeds = [x.diff(dim=2).square().mean(dim=(1, 2, 3, 4)).clamp(min=1e-8) for x in (samples, truth)]
    motion = -(speeds[0] / speeds[1]).log().abs()
    colour = -(samples.mean(dim=(2, 3, 4)) - truth.mean(dim=(2, 3, 4))).abs().mean(dim=1)
    return torch.stack([lips, motion, colour], dim=1)


def dominant_pair(scores: Tensor) -> tuple[int, int] | None:
    """Return the indices of the pair with the widest margin of dominance; None if no sample dominates another.

    Args:
        scores: [S, scores of a sample], higher is better.
    """
    scale = scores.std(dim=0, unbiased=False).clamp(min=1e-12)
    pairs = [
        (float(((scores[a] - scores[b]) / scale).sum()), a, b)
        for a, b in itertools.permutations(range(len(scores)), 2)
        if bool((scores[a] >= scores[b]).all()) and bool((scores[a] > scores[b]).any())
    ]
    return max(pairs)[1:] if pairs else None


def preference_loss(errors: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return the DPO loss: -log sigmoid of the margin by which the model prefers the chosen samples.

    Args:
        errors: [2, B] mean squared errors of velocities on the chosen and on the rejected samples.
        reference: [2, B] errors of the reference model, which tuning starts from.
        beta: strength of the constraint towards the reference model.
    """
    chosen, rejected = errors - reference
    return -functional.logsigmoid(-beta * (chosen - rejected)).mean()


@torch.no_grad()
def collect_pairs(
    dit: DiffusionTransformer, batches: ClipBatches, settings: Preference, progress: Progress | None
) -> list[Pairs]:
    """Sample every condition and collect its dominant pair.

    Returns:
        One `Pairs` of a single row for each condition that has one.

    Raises:
        ValueError: no condition has a dominant pair.
    """
    steps = range(settings.conditions)
    found = []
    for step in steps if progress is None else progress.track(steps, "sampling pairs", settings.conditions):
        batch = batches.make(step)
        repeated = batch.conditions.map(lambda value: value.expand(settings.samples, *[-1] * (value.dim() - 1)))
        image = batch.latents[:, :, :1].expand(settings.samples, -1, -1, -1, -1)
        samples, _ = sample_window(
            dit, image, batch.latents.shape[2], repeated,
            steps=settings.sampler_steps, guidance=settings.guidance, generator=batch.generator,
        )  # fmt: skip
        picked = dominant_pair(score_samples(samples, batch.latents))
        if picked is not None:
            found.append(Pairs(truth=batch, chosen=samples[picked[0]][None], rejected=samples[picked[1]][None]))
    log.info("%d of %d conditions have a dominant pair", len(found), settings.conditions)
    if not found:
        raise ValueError(
            f"none of {settings.conditions} conditions has a dominant pair: raise preference.conditions or samples"
        )
    return found


def pair_batches(pairs: list[Pairs], batches: ClipBatches, steps: range) -> Iterator[Pairs]:
    """Yield one pair per step, chosen by the step alone, with new noise."""
    for step in steps:
        epoch, place = divmod(step, len(pairs))
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(epoch))
        pair = pairs[int(order[place])]
        yield replace(pair, truth=replace(pair.truth, generator=batches.noise(step)))


class PreferenceLoss:
    """The loss of preference tuning, with a frozen copy of the initial model as reference."""

    def __init__(self, dit: DiffusionTransformer, settings: Preference) -> None:
        self.reference = copy.deepcopy(dit).requires_grad_(False).eval()
        self.settings = settings

    def __call__(self, dit: DiffusionTransformer, pairs: Pairs, sigma: Tensor) -> Tensor:
        """Return the preference loss on the pairs plus flow matching on the ground truth.

        Args:
            dit: the trained model.
            pairs: preference pairs of one step.
            sigma: [B, F] noise levels, 0 for the image.
        """
        generator, conditions = pairs.truth.generator, pairs.truth.conditions
        noise = torch.randn(pairs.chosen.shape, generator=generator).to(pairs.chosen.device)
        level = sigma[:, None, :, None, None]

        def error(model: Any, clean: Tensor) -> Tensor:
            predicted = model(flow.interpolate(clean, noise, level), sigma, conditions)
            weight = (level > 0) * level.square() if model.config.predicts == "clean" else (level > 0).float()
            full = weight.expand_as(clean)
            squared = full * (predicted - flow.velocity(clean, noise)).square()
            return squared.sum(dim=(1, 2, 3, 4)) / full.sum(dim=(1, 2, 3, 4)).clamp(min=1e-6)

        with torch.no_grad():
            reference = torch.stack([error(self.reference, x) for x in (pairs.chosen, pairs.rejected)])
        errors = torch.stack([error(dit, x) for x in (pairs.chosen, pairs.rejected)])
        truth = error(dit, pairs.truth.latents).mean()
        return preference_loss(errors, reference, self.settings.beta) + self.settings.flow_weight * truth
