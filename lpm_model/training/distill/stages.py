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
from lpm_model.training.distill.config import Distillation, DmdStage, OffPolicyStage
from lpm_model.training.distill.collapse_monitor import CollapseMonitor, HeldOutRollout
from lpm_model.training.distill.perceptual import decoder_distance
from lpm_model.training.distill.roles import ModelRoles, Role
from lpm_model.training.distill.rollout_samplers import RolloutSampler, Sample, rollout_noise, start_cache
from lpm_model.training.distill.trajectories import Trajectories
from lpm_model.training.engine.data import Batch, step_generator
from lpm_model.training.engine.ema import EMA
from lpm_model.training.engine.launch import SINGLE_PROCESS, Mesh
from lpm_model.training.engine.optimizers import with_schedule

LEVELS = (0.02, 0.98)
"""Least and most of the uniform draw behind the noise levels at which teacher and critic look."""


class StageModule(lightning.LightningModule):
    """What all stages share: whose weights learn, their average, the guard, and steps that all ranks take batches_per_step.

    Args:
        roles: the networks, which are not part of the module's state; what learns of them is.
        settings: of the distillation.
        name: for what is said.
        role: who learns, and is kept.
        decay: of its average.
        held_out: what the guard looks at; None watches nothing.
        start: batches done before.
        mesh: processes.
    """

    def __init__(
        self, roles: ModelRoles, settings: Distillation, *, name: str, role: Role, decay: float, held_out: HeldOutRollout | None,
        start: int = 0, mesh: Mesh = SINGLE_PROCESS,
    ) -> None:  # fmt: skip
        super().__init__()
        self.automatic_optimization = False
        self.roles, self.settings, self.mesh = roles, settings, mesh
        self.name, self.role, self.start = name, role, start
        weights = roles.weights(role)
        self.weights = nn.ParameterList(weights.values())
        self.ema = EMA(weights, decay)
        self.monitor: CollapseMonitor | None = None
        if held_out is not None:
            self.monitor = CollapseMonitor(
                self.ema, settings.collapse_monitor, lambda: held_out.measure(role), mesh.mean
            )

    def configure_model(self) -> None:
        """All weights are whole on every process."""

    def on_train_start(self) -> None:
        if self.monitor is not None and not self.start:
            self.monitor.check(self.name, 0)

    def step_optimizer(self, optimizer: Optimizer, weights: Iterable[nn.Parameter]) -> None:
        """A step of one optimizer with the gradients of all ranks."""
        weights = list(weights)
        if self.mesh.is_distributed:
            _share(weights, self.mesh)
        torch.nn.utils.clip_grad_norm_(weights, self.settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    def after_student_step(self, done: int, steps: int) -> None:
        """After each step of the one who is kept: its average moves, and the guard may look."""
        self.ema.update()
        every = self.settings.collapse_monitor.every_steps
        if self.monitor is not None and (done % every == 0 or done == steps):
            found = self.monitor.check(self.name, done)
            self.log_dict({"distance": found.distance, **found.figures()})
            if self.monitor.collapsed:
                self.trainer.should_stop = True

    def settle(self) -> None:
        """Leave what is kept in the network."""
        (self.ema if self.monitor is None else self.monitor.best_weights).copy_to()


def _share(weights: Sequence[nn.Parameter], mesh: Mesh) -> None:
    """Mean gradients over all ranks; a weight that no rank used keeps none."""
    used = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.float32, device=weights[0].device)
    distributed.all_reduce(used, distributed.ReduceOp.MAX)
    for weight, any_rank in zip(weights, used.tolist(), strict=True):
        if any_rank:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            distributed.all_reduce(weight.grad)
            weight.grad /= mesh.data_parallel


class OdeModule(StageModule):
    """Stage 1: from each state of the teacher's trajectory straight to its end (paper 4.2; arXiv 2412.07772).

    The history is the student's own, so that it learns to come back from its errors (arXiv 2506.08009).
    """

    def __init__(
        self,
        roles: ModelRoles,
        settings: Distillation,
        held_out: HeldOutRollout | None = None,
        start: int = 0,
        mesh: Mesh = SINGLE_PROCESS,
    ) -> None:
        super().__init__(
            roles, settings, name="ODE stage", role="student", decay=settings.ode.ema_decay, held_out=held_out,
            start=start, mesh=mesh,
        )  # fmt: skip
        roles.set_trainable("student")

    def training_step(self, batch: Trajectories, index: int) -> Tensor:
        online, optimizer = self.roles.online, self.optimizers()
        weight = motion_weights(batch.clean[:, :, 1:], self.settings.motion_weight)
        chunks = (batch.clean.shape[2] - 1) // online.chunk_latents
        image, total = batch.clean[:, :, :1], torch.zeros((), device=batch.clean.device)
        noise = rollout_noise(online, image, batch.generator)
        with self.roles.activate("student"):
            cache = start_cache(online, image, batch.conditions)

            def make(span: slice, heard: Conditions) -> Chunk:
                number = int(torch.randint(len(batch.sigmas), (1,), generator=batch.generator))
                targets.append(self.target(cache, batch, number, span, heard))
                clean = self.see(cache, batch, number, span, heard)
                return Chunk(clean, clean)

            targets: list[Tensor] = []
            latents = batch.clean.shape[2]
            for _, clean in online.rollout_with(make, cache, batch.conditions, latents, noise, first=1):
                loss = ode_regression_loss(clean, targets.pop(), weight) / chunks
                self.manual_backward(loss)
                total = total + loss.detach()
        self.step_optimizer(optimizer, self.weights)  # type: ignore[arg-type]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.after_student_step(self.start + index + 1, self.settings.ode.steps)
        return self.mesh.mean(total)

    def see(self, cache: Any, batch: Trajectories, number: int, span: slice, heard: Conditions) -> Tensor:
        """What the student makes of the teacher's state of that number."""
        online, level = self.roles.online, batch.sigmas[number]
        distances = [abs(level - own) for own in online.online.backbone_levels]
        return online.predict_clean(
            online.backbone, cache, batch.states[:, number][:, :, span], level, heard,
            level_index=distances.index(min(distances)),
        )  # fmt: skip

    def target(self, cache: Any, batch: Trajectories, number: int, span: slice, heard: Conditions) -> Tensor:
        """The teacher's end, or, for consistency, what the average makes of the next state, whose end is the same."""
        if self.settings.ode.objective == "regression" or number + 1 == len(batch.sigmas):
            return batch.clean[:, :, span]
        with torch.no_grad(), self.ema.swap():
            return self.see(cache, batch, number + 1, span, heard)

    def configure_optimizers(self) -> Any:
        stage = self.settings.ode
        return with_schedule(
            torch.optim.AdamW(self.weights, stage.learning_rate, (0.9, 0.95)), stage.steps, 4, self.start
        )


class DmdModule(StageModule):
    """Stages 2 to 5: distribution matching (arXiv 2311.18828) of a role on the clips that a sampler makes.

    `critic_steps` steps of the critic, then one of the role's.
    """

    def __init__(
        self, roles: ModelRoles, settings: Distillation, stage: DmdStage, sampler: RolloutSampler, *, name: str,
        held_out: HeldOutRollout | None = None, start: int = 0, mesh: Mesh = SINGLE_PROCESS,
    ) -> None:  # fmt: skip
        super().__init__(
            roles, settings, name=name, role=sampler.role, decay=stage.ema_decay, held_out=held_out, start=start,
            mesh=mesh,
        )  # fmt: skip
        self.stage, self.sampler = stage, sampler
        roles.initialize("critic", "teacher")
        self.critic_weights = nn.ParameterList(roles.weights("critic").values())
        roles.set_trainable(self.role, "critic")

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
            sample = self.sampler.sample(batch, shared, train=False)
        noisy, sigma, noise = self.renoise(sample.clip, batch.generator)
        with self.roles.activate("critic") as critic:
            predicted = critic(noisy, sigma, sample.conditions)
        counts = torch.arange(sigma.shape[1], device=sigma.device) >= sample.first
        return flow_matching_loss(
            predicted, flow.velocity(sample.clip, noise), counts.float()[None, None, :, None, None]
        )

    def student_loss(self, batch: Batch | Trajectories, shared: torch.Generator) -> Tensor:
        """Move the student's clips from where the critic sees them to where the teacher does."""
        sample = self.sampler.sample(batch, shared, train=True)
        clip = sample.clip
        with torch.no_grad():
            noisy, sigma, _ = self.renoise(clip.detach(), batch.generator)
            level = sigma[:, None, :, None, None]
            with self.roles.activate("teacher") as teacher:
                real = guided_velocity(
                    teacher, noisy, sigma, sample.conditions, self.settings.guidance, self.settings.audio_guidance
                )
            with self.roles.activate("critic") as critic:
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
        online, frames = self.roles.online, sample.clip.shape[2]
        first = int(torch.randint(1, max(2, frames - stage.perceptual_latents + 1), (1,), generator=generator))
        span, image = slice(first, first + stage.perceptual_latents), sample.clip[:, :, :1]
        made, wanted = (online.codec.decode(x[:, :, span], image) for x in (sample.clip, sample.target))
        return stage.perceptual_weight * decoder_distance(online.autoencoder, made, wanted)

    def training_step(self, batch: Batch | Trajectories, index: int) -> Tensor:
        optimizers: Any = self.optimizers()
        student, critic = optimizers
        rounds, turn = divmod(self.start + index, self.stage.critic_steps + 1)
        shared, is_student = self.shared(self.start + index), turn == self.stage.critic_steps
        with self.roles.activate(self.role if is_student else "critic"):  # recomputed blocks run in the backward pass
            loss = self.student_loss(batch, shared) if is_student else self.critic_loss(batch, shared)
            self.manual_backward(loss)
        self.step_optimizer(student if is_student else critic, self.weights if is_student else self.critic_weights)
        if is_student:
            self.after_student_step(rounds + 1, self.stage.steps)
        return self.mesh.mean(loss.detach())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.AdamW(self.weights, self.stage.learning_rate, (0.0, 0.99)),
            torch.optim.AdamW(self.critic_weights, self.stage.critic_learning_rate, (0.0, 0.99)),
        ]
