"""The stages of a distillation: regression to the teacher, and distribution matching of any role on any clips.

B rows, F latent frames of a clip, latent 0 the known one.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lpm_model import flow
from lpm_model.dit import Conditions
from lpm_model.losses import dmd_gradient, dmd_loss, flow_matching_loss, motion_weights, ode_regression_loss
from lpm_model.rollout import Chunk
from lpm_model.sampler import SHIFT, guided_velocity
from lpm_model.training.config import Distillation, DmdStage, OffPolicyStage
from lpm_model.training.distill.collapse_monitor import Guard, HeldOut
from lpm_model.training.distill.perceptual import decoder_distance
from lpm_model.training.distill.roles import Cast, Role
from lpm_model.training.distill.rollout_samplers import Player, Sample, noise_of, start_cache
from lpm_model.training.distill.trajectories import Trajectories
from lpm_model.training.engine.data import Batch, step_generator
from lpm_model.training.engine.ema import Average
from lpm_model.training.engine.launch import ALONE, Mesh
from lpm_model.training.engine.loop import scheduled

LEVELS = (0.02, 0.98)
"""Least and most of the uniform draw behind the noise levels at which teacher and critic look."""


class Stage(lightning.LightningModule):
    """What all stages share: whose weights learn, their average, the guard, and steps that all ranks take together.

    Args:
        cast: the networks, which are not part of the module's state; what learns of them is.
        settings: of the distillation.
        name: for what is said.
        role: who learns, and is kept.
        decay: of its average.
        held_out: what the guard looks at; None watches nothing.
        start: batches done before.
        mesh: processes.
    """

    def __init__(
        self, cast: Cast, settings: Distillation, *, name: str, role: Role, decay: float, held_out: HeldOut | None,
        start: int = 0, mesh: Mesh = ALONE,
    ) -> None:  # fmt: skip
        super().__init__()
        self.automatic_optimization = False
        self.cast, self.settings, self.mesh = cast, settings, mesh
        self.name, self.role, self.start = name, role, start
        weights = cast.weights(role)
        self.weights = nn.ParameterList(weights.values())
        self.average = Average(weights, decay)
        self.guard: Guard | None = None
        if held_out is not None:
            self.guard = Guard(self.average, settings.collapse_monitor, lambda: held_out.measure(role), mesh.mean)

    def configure_model(self) -> None:
        """All weights are whole on every process."""

    def on_train_start(self) -> None:
        if self.guard is not None and not self.start:
            self.guard.look(self.name, 0)

    def learn(self, optimizer: Optimizer, weights: Iterable[nn.Parameter]) -> None:
        """A step of one optimizer with the gradients of all ranks."""
        weights = list(weights)
        if self.mesh.several:
            _share(weights, self.mesh)
        torch.nn.utils.clip_grad_norm_(weights, self.settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    def student_stepped(self, done: int, steps: int) -> None:
        """After each step of the one who is kept: its average moves, and the guard may look."""
        self.average.update()
        every = self.settings.collapse_monitor.every_steps
        if self.guard is not None and (done % every == 0 or done == steps):
            found = self.guard.look(self.name, done)
            self.log_dict({"distance": found.distance, **found.figures()})
            if self.guard.collapsed:
                self.trainer.should_stop = True

    def settle(self) -> None:
        """Leave what is kept in the network."""
        (self.average if self.guard is None else self.guard.kept).settle()


def _share(weights: Sequence[nn.Parameter], mesh: Mesh) -> None:
    """Mean gradients over all ranks; a weight that no rank used keeps none."""
    used = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.float32, device=weights[0].device)
    distributed.all_reduce(used, distributed.ReduceOp.MAX)
    for weight, any_rank in zip(weights, used.tolist(), strict=True):
        if any_rank:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            distributed.all_reduce(weight.grad)
            weight.grad /= mesh.data


class OdeModule(Stage):
    """Stage 1: from each state of the teacher's trajectory straight to its end (paper 4.2; arXiv 2412.07772).

    The history is the student's own, so that it learns to come back from its errors (arXiv 2506.08009).
    """

    def __init__(
        self, cast: Cast, settings: Distillation, held_out: HeldOut | None = None, start: int = 0, mesh: Mesh = ALONE
    ) -> None:
        super().__init__(
            cast, settings, name="ODE stage", role="student", decay=settings.ode.ema_decay, held_out=held_out,
            start=start, mesh=mesh,
        )  # fmt: skip
        cast.learn("student")

    def training_step(self, batch: Trajectories, index: int) -> Tensor:
        online, optimizer = self.cast.online, self.optimizers()
        weight = motion_weights(batch.clean[:, :, 1:], self.settings.motion_weight)
        chunks = (batch.clean.shape[2] - 1) // online.chunk_latents
        image, total = batch.clean[:, :, :1], torch.zeros((), device=batch.clean.device)
        noise = noise_of(online, image, batch.generator)
        with self.cast.playing("student"):
            cache = start_cache(online, image, batch.conditions)

            def make(span: slice, heard: Conditions) -> Chunk:
                number = int(torch.randint(len(batch.sigmas), (1,), generator=batch.generator))
                targets.append(self.target(cache, batch, number, span, heard))
                clean = self.see(cache, batch, number, span, heard)
                return Chunk(clean, clean)

            targets: list[Tensor] = []
            for _, clean in online.rollout(cache, batch.conditions, batch.clean.shape[2], noise, first=1, make=make):
                loss = ode_regression_loss(clean, targets.pop(), weight) / chunks
                self.manual_backward(loss)
                total = total + loss.detach()
        self.learn(optimizer, self.weights)  # type: ignore[arg-type]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.student_stepped(self.start + index + 1, self.settings.ode.steps)
        return self.mesh.mean(total)

    def see(self, cache: Any, batch: Trajectories, number: int, span: slice, heard: Conditions) -> Tensor:
        """What the student makes of the teacher's state of that number."""
        online, level = self.cast.online, batch.sigmas[number]
        planes = [abs(level - own) for own in online.online.backbone_levels]
        return online.see(
            online.backbone, cache, batch.states[:, number][:, :, span], level, heard, plane=planes.index(min(planes))
        )

    def target(self, cache: Any, batch: Trajectories, number: int, span: slice, heard: Conditions) -> Tensor:
        """The teacher's end, or, for consistency, what the average makes of the next state, whose end is the same."""
        if self.settings.ode.objective == "regression" or number + 1 == len(batch.sigmas):
            return batch.clean[:, :, span]
        with torch.no_grad(), self.average.instead():
            return self.see(cache, batch, number + 1, span, heard)

    def configure_optimizers(self) -> Any:
        stage = self.settings.ode
        return scheduled(torch.optim.AdamW(self.weights, stage.learning_rate, (0.9, 0.95)), stage.steps, 4, self.start)


class DmdModule(Stage):
    """Stages 2 to 5: distribution matching (arXiv 2311.18828) of a role on the clips that a player makes.

    `critic_steps` steps of the critic, then one of the role's.
    """

    def __init__(
        self, cast: Cast, settings: Distillation, stage: DmdStage, player: Player, *, name: str,
        held_out: HeldOut | None = None, start: int = 0, mesh: Mesh = ALONE,
    ) -> None:  # fmt: skip
        super().__init__(
            cast, settings, name=name, role=player.role, decay=stage.ema_decay, held_out=held_out, start=start,
            mesh=mesh,
        )  # fmt: skip
        self.stage, self.player = stage, player
        cast.start("critic", "teacher")
        self.critic_weights = nn.ParameterList(cast.weights("critic").values())
        cast.learn(self.role, "critic")

    def renoise(self, clip: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One noise level a clip, latent 0 kept clean: the noisy clip, its levels [B, F], the noise."""
        level = torch.rand(clip.shape[0], 1, generator=generator).clamp(*LEVELS)
        sigma = flow.shift_sigma(level, SHIFT).expand(-1, clip.shape[2]).clone().to(clip.device)
        sigma[:, 0] = 0
        noise = torch.randn(clip.shape, generator=generator).to(clip.device)
        return flow.interpolate(clip, noise, sigma[:, None, :, None, None]), sigma, noise

    def shared(self, batches: int) -> torch.Generator:
        """What all ranks draw alike after so many batches."""
        return step_generator(self.settings.seed, batches, f"{self.name} shared")

    def critic_loss(self, batch: Batch | Trajectories, shared: torch.Generator) -> Tensor:
        """Flow matching of the critic on what the student makes."""
        with torch.no_grad():
            sample = self.player.sample(batch, shared, train=False)
        noisy, sigma, noise = self.renoise(sample.clip, batch.generator)
        with self.cast.playing("critic") as critic:
            predicted = critic(noisy, sigma, sample.conditions)
        counts = torch.arange(sigma.shape[1], device=sigma.device) >= sample.first
        return flow_matching_loss(
            predicted, flow.velocity(sample.clip, noise), counts.float()[None, None, :, None, None]
        )

    def student_loss(self, batch: Batch | Trajectories, shared: torch.Generator) -> Tensor:
        """Move the student's clips from where the critic sees them to where the teacher does."""
        sample = self.player.sample(batch, shared, train=True)
        clip = sample.clip
        with torch.no_grad():
            noisy, sigma, _ = self.renoise(clip.detach(), batch.generator)
            level = sigma[:, None, :, None, None]
            with self.cast.playing("teacher") as teacher:
                real = guided_velocity(
                    teacher, noisy, sigma, sample.conditions, self.settings.guidance, self.settings.audio_guidance
                )
            with self.cast.playing("critic") as critic:
                fake = critic(noisy, sigma, sample.conditions)
            gradient = dmd_gradient(
                clip, flow.clean_from_velocity(noisy, real, level), flow.clean_from_velocity(noisy, fake, level)
            )
        loss = dmd_loss(clip[:, :, sample.first :], gradient[:, :, sample.first :])
        return loss + self.perceptual(sample, batch.generator)

    def perceptual(self, sample: Sample, generator: torch.Generator) -> Tensor | float:
        """The weighted distance of decoder features to the teacher's clip, where the stage asks for it."""
        stage = self.stage
        if not isinstance(stage, OffPolicyStage) or not stage.perceptual_weight or sample.target is None:
            return 0.0
        online, frames = self.cast.online, sample.clip.shape[2]
        first = int(torch.randint(1, max(2, frames - stage.perceptual_latents + 1), (1,), generator=generator))
        span, image = slice(first, first + stage.perceptual_latents), sample.clip[:, :, :1]
        made, wanted = (
            online.codec.decode(x[:, :, span], image) for x in (sample.clip, sample.target)
        )
        return stage.perceptual_weight * decoder_distance(online.autoencoder, made, wanted)

    def training_step(self, batch: Batch | Trajectories, index: int) -> Tensor:
        optimizers: Any = self.optimizers()
        student, critic = optimizers
        rounds, turn = divmod(self.start + index, self.stage.critic_steps + 1)
        shared, is_student = self.shared(self.start + index), turn == self.stage.critic_steps
        with self.cast.playing(self.role if is_student else "critic"):  # recomputed blocks run in the backward pass
            loss = self.student_loss(batch, shared) if is_student else self.critic_loss(batch, shared)
            self.manual_backward(loss)
        self.learn(student if is_student else critic, self.weights if is_student else self.critic_weights)
        if is_student:
            self.student_stepped(rounds + 1, self.stage.steps)
        return self.mesh.mean(loss.detach())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.AdamW(self.weights, self.stage.learning_rate, (0.0, 0.99)),
            torch.optim.AdamW(self.critic_weights, self.stage.critic_learning_rate, (0.0, 0.99)),
        ]
