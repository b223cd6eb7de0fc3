"""Watches a distillation on clips that it does not learn from: keeps the best weights, and sees a collapse.

B clips, F latent frames.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from lpm_model.precision import products
from lpm_model.training.config import CollapseMonitorSettings
from lpm_model.training.distill.roles import Cast, Role
from lpm_model.training.distill.rollout_samplers import Spans, own_roll_out
from lpm_model.training.engine.data import Batch
from lpm_model.training.engine.ema import Average

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """How a roll-out compares with what really happened."""

    sync: float
    """Cosine of its courses with the truth's: 1 moves as it does."""
    motion: float
    """Energy of its courses over the truth's."""
    variance: float
    """Variance of its latents over the truth's."""
    colour: float
    """Shift of its mean latent in the truth's standard deviations, root mean square over channels."""

    @property
    def distance(self) -> float:
        """0 is the truth itself; all parts grow with the square of what is wrong, as 1 - cosine does."""
        ratios = [math.log(max(ratio, 1e-6)) ** 2 for ratio in (self.motion, self.variance)]
        return 1 - self.sync + sum(ratios) + self.colour**2

    def figures(self) -> dict[str, float]:
        """Its parts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def collapse(self, bounds: CollapseMonitorSettings) -> str:
        """What is out of bounds, in words; empty where nothing is."""
        found = []
        for name in ("motion", "variance"):
            value, (least, most) = getattr(self, name), getattr(bounds, name)
            if not least <= value <= most:
                found.append(f"{name} is {value:.2f} times the truth's (bounds {least:g} to {most:g})")
        if not self.colour <= bounds.colour:
            found.append(f"colour is {self.colour:.2f} standard deviations off (bound {bounds.colour:g})")
        return ", ".join(found)


def likeness(made: Tensor, truth: Tensor) -> Likeness:
    """Compare absolute latents [B, channels, F, h, w] with the truth, latent 0 the same; means over clips.

    A course is what a latent cell does about its mean over time; it counts by how quickly the truth moves there, so
    that lips count more than the wall. Changes from latent frame to latent frame would count flicker most.
    """
    made, truth = made.double(), truth.double()
    speed = truth.diff(dim=2).square().mean(dim=(1, 2), keepdim=True)
    weight = speed / speed.mean(dim=(3, 4), keepdim=True).clamp(min=1e-12)
    courses = (x[:, :, 1:] - x[:, :, 1:].mean(dim=2, keepdim=True) for x in (made, truth))
    own, true = ((course * weight.sqrt()).flatten(1) for course in courses)
    energy, true_energy = (x.square().sum(1) for x in (own, true))
    axes = (2, 3, 4)
    shift = (made.mean(axes) - truth.mean(axes)) / truth.std(axes).clamp(min=1e-6)
    return Likeness(
        sync=float(((own * true).sum(1) / (energy * true_energy).sqrt().clamp(min=1e-12)).mean()),
        motion=float(energy.mean() / true_energy.mean().clamp(min=1e-12)),
        variance=float(made.var(axes).mean() / truth.var(axes).mean().clamp(min=1e-12)),
        colour=float(shift.square().mean().sqrt()),
    )


class HeldOut:
    """Rolls a role out on the same clips with the same noise, every time."""

    def __init__(self, cast: Cast, batch: Batch) -> None:
        self.cast, self.batch = cast, batch
        self.noise = batch.generator.get_state()

    @torch.no_grad()
    def measure(self, role: Role) -> Likeness:
        """The whole generation up to a role against the truth."""
        online, batch = self.cast.online, self.batch
        batch.generator.set_state(self.noise)
        end = 1 + (batch.latents.shape[2] - 1) // online.chunk_latents * online.chunk_latents
        with products(self.cast.device), self.cast.playing(role):
            made = own_roll_out(self.cast, role, batch, Spans(0, end, end), None, train=False)
            clip = torch.cat([chunk for _, chunk in made], dim=2).float()
        image = batch.latents[:, :, :1]
        both = (torch.cat([image, online.codec.decode(x, image)], dim=2) for x in (clip, batch.latents[:, :, 1:end]))
        return likeness(*(x.cpu() for x in both))


class Guard(nn.Module):
    """The best weights of a stage so far, by their distance to the truth; part of the stage's saved state.

    Args:
        average: what is measured and kept.
        settings: bounds.
        measure: with the average in the network's place.
        mean: of a tensor over all ranks, so that they decide alike.
    """

    best: Tensor
    state: Tensor

    def __init__(
        self,
        average: Average,
        settings: CollapseMonitorSettings,
        measure: Callable[[], Likeness],
        mean: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.settings, self.measure, self.mean = settings, measure, mean
        self.watched = [average]  # in a list: saved as a part of the stage itself
        self.kept = Average(dict(enumerate(average.weights)))  # type: ignore[arg-type]
        self.register_buffer("best", torch.tensor([math.inf, 0.0], dtype=torch.float64))
        self.register_buffer("state", torch.zeros(2, dtype=torch.long))

    @property
    def distance(self) -> float:
        """Of the best weights."""
        return float(self.best[0])

    @property
    def best_step(self) -> int:
        """When they were found."""
        return int(self.best[1])

    @property
    def collapsed(self) -> bool:
        """Whether the stage has to end."""
        return bool(self.state[1])

    def look(self, name: str, step: int) -> Likeness:
        """Measure after so many student steps; what is better than before is kept.

        A stage that begins out of bounds may come in; leaving them again is a collapse.
        """
        average = self.watched[0]
        with average.instead():
            own = self.measure()
        found = self.mean(torch.tensor(list(own.figures().values()), dtype=torch.float64, device=self.best.device))
        told = Likeness(**dict(zip(own.figures(), found.tolist(), strict=True)))
        wrong = told.collapse(self.settings)
        figures = ", ".join(f"{part} {value:.3f}" for part, value in told.figures().items())
        log.info("%s, step %d: distance to the truth %.4f (%s)", name, step, told.distance, figures)
        within = not wrong
        if (within, -told.distance) > (bool(self.state[0]), -self.distance):
            self.best.copy_(torch.tensor([told.distance, step], dtype=torch.float64))
            self.kept.take(average.values)
        if wrong and self.state[0]:
            self.state[1] = 1
            log.warning(
                "%s collapsed at step %d: %s. It ends here; the weights of step %d are kept. Lower its learning rate "
                "or its steps.", name, step, wrong, self.best_step,
            )  # fmt: skip
        self.state[0] = int(within or bool(self.state[0]))
        return told
