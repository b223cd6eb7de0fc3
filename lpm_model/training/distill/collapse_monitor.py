"""Validates a distillation on held-out clips: retains the best checkpoint and detects a collapse.

B clips, C channels, F latent frames, h w latent grid.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from lpm_model.precision import native_autocast
from lpm_model.training.distill.config import CollapseMonitorSettings
from lpm_model.training.distill.roles import ModelRoles, Role
from lpm_model.training.distill.rollout_samplers import RolloutSpans, rollout_of_role
from lpm_model.training.engine.data import Batch
from lpm_model.training.engine.ema import EMA

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutComparison:
    """A rollout compared with the ground truth."""

    sync: float
    """Cosine similarity of the trajectories of latent cells: 1 moves exactly like the ground truth."""
    motion: float
    """Energy of these trajectories relative to the ground truth."""
    variance: float
    """Variance of the latents relative to the ground truth."""
    colour: float
    """Shift of the mean latent in standard deviations of the ground truth, root mean square over channels."""

    @property
    def distance(self) -> float:
        """Validation distance, 0 for the ground truth; every term is quadratic in the error, as 1 - cosine is."""
        ratios = [math.log(max(ratio, 1e-6)) ** 2 for ratio in (self.motion, self.variance)]
        return 1 - self.sync + sum(ratios) + self.colour**2

    def metrics(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)

    def collapse(self, bounds: CollapseMonitorSettings) -> str:
        """Describe what is out of bounds; empty if nothing is."""
        found = []
        for name in ("motion", "variance"):
            value, (low, high) = getattr(self, name), getattr(bounds, name)
            if not low <= value <= high:
                found.append(f"{name} is {value:.2f} times that of the ground truth (bounds {low:g} to {high:g})")
        if not self.colour <= bounds.colour:
            found.append(f"colour is {self.colour:.2f} standard deviations off (bound {bounds.colour:g})")
        return ", ".join(found)


def compare_rollout(generated: Tensor, truth: Tensor) -> RolloutComparison:
    """Compare rollouts with the ground truth, averaged over clips.

    The trajectory of a latent cell is its value minus its mean over time. It is weighted by how fast the ground truth
    moves there, so that lips count more than the background. Frame-to-frame differences would weight flicker most.

    Args:
        generated: [B, C, F, h, w] absolute latents, latent 0 the image.
        truth: [B, C, F, h, w] with the same latent 0.
    """
    generated, truth = generated.double(), truth.double()
    speed = truth.diff(dim=2).square().mean(dim=(1, 2), keepdim=True)
    weight = speed / speed.mean(dim=(3, 4), keepdim=True).clamp(min=1e-12)
    trajectories = (x[:, :, 1:] - x[:, :, 1:].mean(dim=2, keepdim=True) for x in (generated, truth))
    own, true = ((trajectory * weight.sqrt()).flatten(1) for trajectory in trajectories)
    energy, true_energy = (x.square().sum(1) for x in (own, true))
    axes = (2, 3, 4)
    shift = (generated.mean(axes) - truth.mean(axes)) / truth.std(axes).clamp(min=1e-6)
    return RolloutComparison(
        sync=float(((own * true).sum(1) / (energy * true_energy).sqrt().clamp(min=1e-12)).mean()),
        motion=float(energy.mean() / true_energy.mean().clamp(min=1e-12)),
        variance=float(generated.var(axes).mean() / truth.var(axes).mean().clamp(min=1e-12)),
        colour=float(shift.square().mean().sqrt()),
    )


class HeldOutRollout:
    """Rolls a role out on the same held-out clips with the same noise every time."""

    def __init__(self, roles: ModelRoles, batch: Batch) -> None:
        self.roles, self.batch = roles, batch
        self.noise = batch.generator.get_state()

    @torch.no_grad()
    def measure(self, role: Role) -> RolloutComparison:
        """Roll out this role (the refiner after the student) and compare the result with the ground truth."""
        online, batch = self.roles.online, self.batch
        batch.generator.set_state(self.noise)
        end = 1 + (batch.latents.shape[2] - 1) // online.chunk_latents * online.chunk_latents
        with native_autocast(self.roles.device), self.roles.activate(role):
            rollout = rollout_of_role(self.roles, role, batch, RolloutSpans(0, end, end), None, train=False)
            clip = torch.cat([chunk for _, chunk in rollout], dim=2).float()
        image = batch.latents[:, :, :1]
        both = (torch.cat([image, online.codec.decode(x, image)], dim=2) for x in (clip, batch.latents[:, :, 1:end]))
        return compare_rollout(*(x.cpu() for x in both))


class CollapseMonitor(nn.Module):
    """The best weights of a stage so far, by validation distance; its buffers are part of the stage's checkpoint.

    Args:
        ema: the weights to validate and retain.
        settings: bounds.
        measure: compares rollouts of the network, which holds the EMA weights, with the ground truth.
        mean: averages a tensor over all ranks, so that all decide alike.
    """

    best: Tensor
    """[2] distance and step of the best weights."""
    state: Tensor
    """[2] whether the stage has been within bounds, and whether it has collapsed."""

    def __init__(
        self,
        ema: EMA,
        settings: CollapseMonitorSettings,
        measure: Callable[[], RolloutComparison],
        mean: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.settings, self.measure, self.mean = settings, measure, mean
        self.watched = [ema]  # in a list: it is saved as a part of the stage
        self.best_weights = EMA(dict(enumerate(ema.weights)))  # type: ignore[arg-type]
        self.register_buffer("best", torch.tensor([math.inf, 0.0], dtype=torch.float64))
        self.register_buffer("state", torch.zeros(2, dtype=torch.long))

    @property
    def best_distance(self) -> float:
        """Validation distance of the best weights."""
        return float(self.best[0])

    @property
    def best_step(self) -> int:
        """Student step of the best weights; 0 if no step improved on the initial ones."""
        return int(self.best[1])

    @property
    def collapsed(self) -> bool:
        """Whether the stage has to stop."""
        return bool(self.state[1])

    def check(self, name: str, step: int) -> RolloutComparison:
        """Validate after a student step and retain the weights if they are the best so far.

        A stage that starts out of bounds may still reach them; leaving them again is a collapse.
        """
        ema = self.watched[0]
        with ema.swap():
            own = self.measure()
        mean = self.mean(torch.tensor(list(own.metrics().values()), dtype=torch.float64, device=self.best.device))
        found = RolloutComparison(**dict(zip(own.metrics(), mean.tolist(), strict=True)))
        out_of_bounds = found.collapse(self.settings)
        parts = ", ".join(f"{part} {value:.3f}" for part, value in found.metrics().items())
        log.info("%s, step %d: validation distance %.4f (%s)", name, step, found.distance, parts)
        within = not out_of_bounds
        if (within, -found.distance) > (bool(self.state[0]), -self.best_distance):
            self.best.copy_(torch.tensor([found.distance, step], dtype=torch.float64))
            self.best_weights.load(ema.values)
        if out_of_bounds and self.state[0]:
            self.state[1] = 1
            log.warning(
                "%s collapsed at step %d: %s. The stage stops here with the best weights, those of step %d. Lower its "
                "learning rate or its number of steps.", name, step, out_of_bounds, self.best_step,
            )  # fmt: skip
        self.state[0] = int(within or bool(self.state[0]))
        return found
