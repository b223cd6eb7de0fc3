"""Lightning modules of the distillation stages: ODE regression, and distribution matching of a role on any clips.

B rows, F latent frames of a clip, latent 0 the given one.
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
from lpm_model.training.distill.collapse_monitor import CollapseMonitor, HeldOutRollout
from lpm_model.training.distill.config import Distillation, DmdStage, OffPolicyStage
from lpm_model.training.distill.perceptual import decoder_distance
from lpm_model.training.distill.roles import ModelRoles, Role
from lpm_model.training.distill.rollout_samplers import RolloutSampler, Sample, rollout_noise, start_cache
from lpm_model.training.distill.trajectories import Trajectories
from lpm_model.training.engine.data import Batch, step_generator
from lpm_model.training.engine.ema import EMA
from lpm_model.training.engine.launch import SINGLE_PROCESS, Mesh
from lpm_model.training.engine.optimizers import with_schedule

LEVEL_BOUNDS = (0.02, 0.98)
"""Bounds of the uniform draw from which the noise levels of teacher and critic are computed."""


class StageModule(lightning.LightningModule):
    """Base of all stages: the trained weights, their EMA, the collapse monitor, and steps across all ranks.

    Args:
        roles: the networks; only their trained weights are part of the module's state.
        settings: settings of the distillation.
        name: name in logs and in the seed of draws that all ranks share.
        role: role whose weights are trained and retained.
        decay: decay of the EMA.
        held_out: validation of the collapse monitor; None for no monitor.
        start: batches done before a resumed run.
        mesh: processes.
    """

    def __init__(
        self, roles: ModelRoles, settings: Distillation, *, name: str, role: Role, decay: float,
        held_out: HeldOutRollout | None, start: int = 0, mesh: Mesh = SINGLE_PROCESS,
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
        """Do nothing: every process has the full weights."""

    def on_train_start(self) -> None:
        if self.monitor is not None and not self.start:
            self.monitor.check(self.name, 0)

    def step_optimizer(self, optimizer: Optimizer, weights: Iterable[nn.Parameter]) -> None:
        """Step one optimizer with the gradients averaged over all ranks."""
        weights = list(weights)
        if self.mesh.is_distributed:
            _average_gradients(weights, self.mesh)
        torch.nn.utils.clip_grad_norm_(weights, self.settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    def after_student_step(self, done: int, steps: int) -> None:
        """Update the EMA after a step of the retained role, and validate every `every_steps` steps."""
        self.ema.update()
        every = self.settings.collapse_monitor.every_steps
        if self.monitor is not None and (done % every == 0 or done == steps):
            found = self.monitor.check(self.name, done)
            self.log_dict({"validation_distance": found.distance, **found.metrics()})
            if self.monitor.collapsed:
                self.trainer.should_stop = True

    def load_retained_weights(self) -> None:
        """Copy the best weights, or the EMA without a monitor, into the network."""
        (self.ema if self.monitor is None else self.monitor.best_weights).copy_to()


def _average_gradients(weights: Sequence[nn.Parameter], mesh: Mesh) -> None:
    """Average gradients over all ranks; a weight that no rank used keeps the gradient None."""
    used = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.float32, device=weights[0].device)
    distributed.all_reduce(used, distributed.ReduceOp.MAX)
    for weight, any_rank in zip(weights, used.tolist(), strict=True):
        if any_rank:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            distributed.all_reduce(weight.grad)
            weight.grad /= mesh.data_parallel


class OdeModule(StageModule):
    """Stage 1: regression from a state of the teacher's trajectory to its endpoint (paper 4.2; arXiv 2412.07772).

    The history is the student's own, so that it learns to recover from its errors (arXiv 2506.08009).
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

            def make(span: slice, given: Conditions) -> Chunk:
                number = int(torch.randint(len(batch.sigmas), (1,), generator=batch.generator))
                targets.append(self.target(cache, batch, number, span, given))
                clean = self.predict(cache, batch, number, span, given)
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

    def predict(self, cache: Any, batch: Trajectories, number: int, span: slice, given: Conditions) -> Tensor:
        """Return the student's prediction [B, channels, c, h, w] from state `number` of the teacher."""
        online, level = self.roles.online, batch.sigmas[number]
        distances = [abs(level - own) for own in online.online.backbone_levels]
        return online.predict_clean(
            online.backbone, cache, batch.states[:, number][:, :, span], level, given,
            level_index=distances.index(min(distances)),
        )  # fmt: skip

    def target(self, cache: Any, batch: Trajectories, number: int, span: slice, given: Conditions) -> Tensor:
        """Return the teacher's endpoint or, for consistency, the EMA's prediction from the next state of the path."""
        if self.settings.ode.objective == "regression" or number + 1 == len(batch.sigmas):
            return batch.clean[:, :, span]
        with torch.no_grad(), self.ema.swap():
            return self.predict(cache, batch, number + 1, span, given)

    def configure_optimizers(self) -> Any:
        stage = self.settings.ode
        return with_schedule(
            torch.optim.AdamW(self.weights, stage.learning_rate, (0.9, 0.95)), stage.steps, 4, self.start
        )


class DmdModule(StageModule):
    """Stages 2 to 5: distribution matching (arXiv 2311.18828) of a role on the clips of a sampler.

    `critic_steps` steps of the critic precede each step of the role.
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
        """Add noise of one level to each clip, except to latent 0.

        Args:
            clip: [B, channels, F, h, w].
            generator: draws levels and noise.

        Returns:
            The noisy clip, its levels [B, F], the noise.
        """
        level = torch.rand(clip.shape[0], 1, generator=generator).clamp(*LEVEL_BOUNDS)
        sigma = flow.shift_sigma(level, SHIFT).expand(-1, clip.shape[2]).clone().to(clip.device)
        sigma[:, 0] = 0
        noise = torch.randn(clip.shape, generator=generator).to(clip.device)
        return flow.interpolate(clip, noise, sigma[:, None, :, None, None]), sigma, noise

    def shared(self, batches: int) -> torch.Generator:
        """Return the generator of the draws that all ranks share in a batch."""
        return step_generator(self.settings.seed, batches, f"{self.name} shared")

    def critic_loss(self, batch: Batch | Trajectories, shared: torch.Generator) -> Tensor:
        """Return the critic's flow-matching loss on the student's clips."""
        with torch.no_grad():
            sample = self.sampler.sample(batch, shared, train=False)
        noisy, sigma, noise = self.renoise(sample.clip, batch.generator)
        with self.roles.activate("critic") as critic:
            predicted = critic(noisy, sigma, sample.conditions)
        counted = torch.arange(sigma.shape[1], device=sigma.device) >= sample.first
        return flow_matching_loss(
            predicted, flow.velocity(sample.clip, noise), counted.float()[None, None, :, None, None]
        )

    def student_loss(self, batch: Batch | Trajectories, shared: torch.Generator) -> Tensor:
        """Return the loss that moves the student's clips from the critic's prediction to the teacher's."""
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
        """Return the weighted distance of decoder features to the teacher's clip, if the stage has one."""
        stage = self.stage
        if not isinstance(stage, OffPolicyStage) or not stage.perceptual_weight or sample.target is None:
            return 0.0
        online, frames = self.roles.online, sample.clip.shape[2]
        first = int(torch.randint(1, max(2, frames - stage.perceptual_latents + 1), (1,), generator=generator))
        span, image = slice(first, first + stage.perceptual_latents), sample.clip[:, :, :1]
        generated, target = (online.codec.decode(x[:, :, span], image) for x in (sample.clip, sample.target))
        return stage.perceptual_weight * decoder_distance(online.autoencoder, generated, target)

    def training_step(self, batch: Batch | Trajectories, index: int) -> Tensor:
        optimizers: Any = self.optimizers()
        student, critic = optimizers
        student_step, turn = divmod(self.start + index, self.stage.critic_steps + 1)
        shared, is_student = self.shared(self.start + index), turn == self.stage.critic_steps
        # The role stays active in the backward pass, where checkpointed blocks run again.
        with self.roles.activate(self.role if is_student else "critic"):
            loss = self.student_loss(batch, shared) if is_student else self.critic_loss(batch, shared)
            self.manual_backward(loss)
        self.step_optimizer(student if is_student else critic, self.weights if is_student else self.critic_weights)
        if is_student:
            self.after_student_step(student_step + 1, self.stage.steps)
        return self.mesh.mean(loss.detach())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.AdamW(self.weights, self.stage.learning_rate, (0.0, 0.99)),
            torch.optim.AdamW(self.critic_weights, self.stage.critic_learning_rate, (0.0, 0.99)),
        ]
