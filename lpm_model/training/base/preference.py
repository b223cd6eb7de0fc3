"""Preference tuning of Base LPM: several samples of one condition, pairs where one dominates, and a loss that prefers.

A sample is preferred only to one that it beats in something and loses to in nothing (Pareto dominance, paper section
3.4); conditions without such a pair are left out. The loss is direct preference optimisation for diffusion
(https://arxiv.org/abs/2311.12908) on velocities, with flow matching on true clips beside it against colour shift.

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
from lpm_model.training.config import Preference
from lpm_model.training.engine.data import Batch, ClipBatches

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pairs:
    """A batch of pairs; `keys` and conditions are those of the clips, `latents` the true ones."""

    truth: Batch
    won: Tensor
    """[B, channels, F, h, w]."""
    lost: Tensor
    """The same of what each dominates."""

    def to(self, device: torch.device, **_: Any) -> "Pairs":
        """On another device."""
        return Pairs(truth=self.truth.to(device), won=self.won.to(device), lost=self.lost.to(device))

    @property
    def latents(self) -> Tensor:
        """The true ones."""
        return self.truth.latents

    @property
    def keys(self) -> tuple[str, ...]:
        """Clips."""
        return self.truth.keys


def judge(made: Tensor, truth: Tensor) -> Tensor:
    """How good samples of a true window are, higher is better: [S, 3] for lips, amount of motion, colour.

    Args:
        made: [S, channels, F, h, w].
        truth: [1, channels, F, h, w].
    """
    weight = motion_weights(truth, 15.0)
    lips = -(weight * (made - truth).square()).mean(dim=(1, 2, 3, 4))
    speeds = [x.diff(dim=2).square().mean(dim=(1, 2, 3, 4)).clamp(min=1e-8) for x in (made, truth)]
    motion = -(speeds[0] / speeds[1]).log().abs()
    colour = -(made.mean(dim=(2, 3, 4)) - truth.mean(dim=(2, 3, 4))).abs().mean(dim=1)
    return torch.stack([lips, motion, colour], dim=1)


def dominant_pair(scores: Tensor) -> tuple[int, int] | None:
    """The sample that dominates another by the widest margin, and that other; None where none dominates.

    Args:
        scores: [S, dimensions], higher is better.
    """
    scale = scores.std(dim=0, unbiased=False).clamp(min=1e-12)
    pairs = [
        (float(((scores[a] - scores[b]) / scale).sum()), a, b)
        for a, b in itertools.permutations(range(len(scores)), 2)
        if bool((scores[a] >= scores[b]).all()) and bool((scores[a] > scores[b]).any())
    ]
    return max(pairs)[1:] if pairs else None


def preference_loss(errors: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log sigmoid of how much more the model than the reference errs on the lost sample than on the won one.

    Args:
        errors: [2, B] mean squared errors of velocities on the won and on the lost samples.
        reference: the same of the model that tuning started from.
        beta: how far the model may go from it; smaller lets it go further.
    """
    won, lost = errors - reference
    return -functional.logsigmoid(-beta * (won - lost)).mean()


@torch.no_grad()
def collect(
    dit: DiffusionTransformer, batches: ClipBatches, settings: Preference, progress: Progress | None
) -> list[Pairs]:
    """Sample every condition and keep the pairs, one condition a `Pairs`.

    Raises:
        ValueError: no condition gave a pair.
    """
    steps = range(settings.conditions)
    found = []
    for step in steps if progress is None else progress.track(steps, "sampling pairs", settings.conditions):
        batch = batches.make(step)
        many = batch.conditions.map(lambda value: value.expand(settings.samples, *[-1] * (value.dim() - 1)))
        known = batch.latents[:, :, :1].expand(settings.samples, -1, -1, -1, -1)
        made, _ = sample_window(
            dit, known, batch.latents.shape[2], many,
            steps=settings.sampler_steps, guidance=settings.guidance, generator=batch.generator,
        )  # fmt: skip
        picked = dominant_pair(judge(made, batch.latents))
        if picked is not None:
            found.append(Pairs(truth=batch, won=made[picked[0]][None], lost=made[picked[1]][None]))
    log.info("%d of %d conditions gave a dominant pair", len(found), settings.conditions)
    if not found:
        raise ValueError(
            f"none of {settings.conditions} conditions gave a dominant pair: raise preference.conditions or samples"
        )
    return found


def pair_batches(pairs: list[Pairs], batches: ClipBatches, steps: range) -> Iterator[Pairs]:
    """One condition's pair a step, in an order that depends on the step alone, with fresh noise."""
    for step in steps:
        turn, place = divmod(step, len(pairs))
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(turn))
        pair = pairs[int(order[place])]
        yield replace(pair, truth=replace(pair.truth, generator=batches.noise(step)))


class PreferenceLoss:
    """The loss of a step; keeps the reference model."""

    def __init__(self, dit: DiffusionTransformer, settings: Preference) -> None:
        self.reference = copy.deepcopy(dit).requires_grad_(False).eval()
        self.settings = settings

    def __call__(self, dit: DiffusionTransformer, pairs: Pairs, sigma: Tensor) -> Tensor:
        """Preference on the pair, flow matching on the truth.

        Args:
            dit: the model that learns.
            pairs: of one step.
            sigma: [B, F] noise levels, 0 for the image.
        """
        generator, conditions = pairs.truth.generator, pairs.truth.conditions
        noise = torch.randn(pairs.won.shape, generator=generator).to(pairs.won.device)
        level = sigma[:, None, :, None, None]

        def error(model: Any, clean: Tensor) -> Tensor:
            predicted = model(flow.interpolate(clean, noise, level), sigma, conditions)
            weight = (level > 0) * level.square() if model.config.predicts == "clean" else (level > 0).float()
            full = weight.expand_as(clean)
            squared = full * (predicted - flow.velocity(clean, noise)).square()
            return squared.sum(dim=(1, 2, 3, 4)) / full.sum(dim=(1, 2, 3, 4)).clamp(min=1e-6)

        with torch.no_grad():
            reference = torch.stack([error(self.reference, x) for x in (pairs.won, pairs.lost)])
        errors = torch.stack([error(dit, x) for x in (pairs.won, pairs.lost)])
        truth = error(dit, pairs.truth.latents).mean()
        return preference_loss(errors, reference, self.settings.beta) + self.settings.flow_weight * truth
