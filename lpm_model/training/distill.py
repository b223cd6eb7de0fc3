"""From Base to Online LPM: ODE regression, then on-policy DMD, both rolling out through lpm_model.online.

B batch, F latent frames of a roll-out, latent 0 the character image; chunks follow it.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lpm_model import flow
from lpm_model.autoencoder import copy_autoencoder, load_autoencoder
from lpm_model.cache import KVCache
from lpm_model.character import Character, read_model_config
from lpm_model.checkpoint import load_weights, read_weights, save_model
from lpm_model.config import ModelConfig, from_mapping, to_mapping
from lpm_model.digests import model_digest
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.encoders import copy_encoders, encoders_of
from lpm_model.losses import dmd_gradient, dmd_loss, flow_matching_loss, motion_weights, ode_regression_loss
from lpm_model.online import OnlineModel
from lpm_model.rollout import Noise
from lpm_model.sampler import guided_velocity, sample_window
from lpm_model.training.clips import read_clips
from lpm_model.training.config import Distillation
from lpm_model.training.data import Batch, ClipBatches, Draw, read_dataset, step_generator
from lpm_model.training.loop import RECENT, Again, LossHistory, StateFile, Track, run, scheduled


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Teacher states of some clips."""

    clean: Tensor
    """[B, channels, F, h, w] where the teacher ends."""
    states: Tensor
    """[steps, B, channels, F, h, w] the teacher's states at the student's noise levels."""
    conditions: Conditions
    generator: torch.Generator

    def rows(self, index: Tensor, generator: torch.Generator) -> "Trajectories":
        """Some of the rows."""
        picked = self.conditions.map(lambda value: value[index])
        return Trajectories(self.clean[index], self.states[:, index], picked, generator)

    def to(self, device: torch.device, **_: Any) -> "Trajectories":
        """On another device."""
        moved = self.conditions.map(lambda value: value.to(device))
        return Trajectories(self.clean.to(device), self.states.to(device), moved, self.generator)


def start_cache(online: OnlineModel, image: Tensor, conditions: Conditions) -> KVCache:
    """A cache primed with the characters of a batch; image [B, channels, 1, h, w]."""
    assert conditions.references is not None
    assert conditions.reference_positions is not None
    return online.prime(Character(image, conditions.references, conditions.reference_positions))


class OdeModule(lightning.LightningModule):
    """Stage 1: from each state of the teacher's trajectory straight to its end (paper 4.2; arXiv 2412.07772).

    The history is the student's own, so that it learns to come back from its errors (arXiv 2506.08009).
    """

    def __init__(self, online: OnlineModel, settings: Distillation, start: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone, self.settings, self.start = online.backbone, settings, start
        self.online = [online]  # in a list: only the backbone's weights are this module's

    def training_step(self, batch: Trajectories, _index: int) -> Tensor:
        online, optimizer, schedule = self.online[0], self.optimizers(), self.lr_schedulers()
        cache = start_cache(online, batch.clean[:, :, :1], batch.conditions)
        weight = motion_weights(batch.clean[:, :, 1:], self.settings.motion_weight)
        noise = Noise(tuple(batch.clean[:, :, : online.chunk_latents].shape), batch.generator, batch.clean.device)
        chunks = (batch.clean.shape[2] - 1) // online.chunk_latents
        total = torch.zeros(())

        def start(span: slice) -> tuple[Tensor, int]:
            index = int(torch.randint(batch.states.shape[0], (1,), generator=batch.generator))
            return batch.states[index][:, :, span], index

        frames = batch.clean.shape[2]
        for span, clean in online.rollout(cache, batch.conditions, frames, noise, first=1, start=start, train=True):
            loss = ode_regression_loss(clean, batch.clean[:, :, span], weight) / chunks
            self.manual_backward(loss)
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), self.settings.clip_norm)
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr]
        return total

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.backbone.parameters(), self.settings.ode_learning_rate, (0.9, 0.95))
        return scheduled(optimizer, self.settings.ode_steps, 4, self.start)


class DmdModule(lightning.LightningModule):
    """Stage 3: distribution matching on the student's own roll-outs (paper section 4.2; arXiv 2506.08009)."""

    def __init__(self, online: OnlineModel, teacher: DiffusionTransformer, settings: Distillation, start: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings, self.start = settings, start
        self.backbone = online.backbone
        self.critic = DiffusionTransformer(teacher.config)
        self.critic.load_state_dict(teacher.state_dict())
        self.average = AveragedModel(online.backbone, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
        self.frozen = [online, teacher]  # in a list: neither is trained nor saved with this module

    def roll_out(self, batch: Batch, *, train: bool) -> Tensor:
        """The student's own clip [B, channels, F, h, w] after the batch's image, through `rollout`."""
        online: OnlineModel = self.frozen[0]  # type: ignore[assignment]
        image = batch.latents[:, :, :1]
        cache = start_cache(online, image, batch.conditions)
        noise = Noise(tuple(image.expand(-1, -1, online.chunk_latents, -1, -1).shape), batch.generator, image.device)
        exit_index = int(torch.randint(len(online.online.backbone_sigmas), (1,), generator=batch.generator))
        made = online.rollout(
            cache, batch.conditions, batch.latents.shape[2], noise, first=1, exit_index=exit_index, train=train
        )
        return torch.cat([image, *(clean for _, clean in made)], dim=2)

    def renoise(self, clip: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One noise level a clip, latent 0 kept clean: the noisy clip, its levels [B, F], the noise."""
        level = torch.rand(clip.shape[0], 1, generator=generator).clamp(0.02, 0.98)
        sigma = flow.shift_sigma(level, 3.0).expand(-1, clip.shape[2]).clone()
        sigma[:, 0] = 0
        noise = torch.randn(clip.shape, generator=generator)
        return flow.interpolate(clip, noise, sigma[:, None, :, None, None]), sigma, noise

    def critic_loss(self, batch: Batch) -> Tensor:
        """Flow matching of the critic on what the student makes."""
        with torch.no_grad():
            clip = self.roll_out(batch, train=False)
        noisy, sigma, noise = self.renoise(clip, batch.generator)
        predicted = self.critic(noisy, sigma, batch.conditions)
        weight = (sigma > 0).float()[:, None, :, None, None]
        return flow_matching_loss(predicted, flow.velocity(clip, noise), weight)

    def student_loss(self, batch: Batch) -> Tensor:
        """DMD: move the student's clips from where the critic sees them to where the teacher does."""
        teacher: DiffusionTransformer = self.frozen[1]  # type: ignore[assignment]
        clip = self.roll_out(batch, train=True)
        with torch.no_grad():
            noisy, sigma, _ = self.renoise(clip.detach(), batch.generator)
            level = sigma[:, None, :, None, None]
            real = guided_velocity(
                teacher, noisy, sigma, batch.conditions, self.settings.guidance, self.settings.audio_guidance
            )
            fake = self.critic(noisy, sigma, batch.conditions)
            gradient = dmd_gradient(
                clip, flow.clean_from_velocity(noisy, real, level), flow.clean_from_velocity(noisy, fake, level)
            )
        return dmd_loss(clip[:, :, 1:], gradient[:, :, 1:])

    def training_step(self, batch: Batch, index: int) -> Tensor:
        student, critic = self.optimizers()  # type: ignore[attr-defined]
        turn = (index + self.start) % (self.settings.critic_steps + 1)
        is_student = turn == self.settings.critic_steps
        loss = self.student_loss(batch) if is_student else self.critic_loss(batch)
        trained, optimizer = (self.backbone, student) if is_student else (self.critic, critic)
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(trained.parameters(), self.settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if is_student:
            self.average.update_parameters(self.backbone)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        rates = self.settings
        return [
            torch.optim.AdamW(self.backbone.parameters(), rates.dmd_learning_rate, (0.0, 0.99)),
            torch.optim.AdamW(self.critic.parameters(), rates.critic_learning_rate, (0.0, 0.99)),
        ]


def teacher_trajectories(
    teacher: DiffusionTransformer, batches: Iterator[Batch], settings: Distillation
) -> Trajectories:
    """Sample the teacher with guidance and keep its states at the student's noise levels."""
    parts = []
    levels = settings.online.backbone_sigmas
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            clean, states = sample_window(
                teacher, batch.latents[:, :, :1], batch.latents.shape[2], batch.conditions,
                steps=settings.teacher_steps, guidance=settings.guidance,
                audio_guidance=settings.audio_guidance, generator=batch.generator, keep=levels,
            )  # fmt: skip
        parts.append((clean, torch.stack([states[level] for level in levels]), batch.conditions))

    def join(name: str) -> Tensor | None:
        values: list[Tensor | None] = [getattr(conditions, name) for _, _, conditions in parts]
        like = next((value for value in values if value is not None), None)
        # A batch without any caption has no text; beside one with captions it reads as empty texts do there.
        return None if like is None else torch.cat([torch.zeros_like(like) if v is None else v for v in values])

    return Trajectories(
        clean=torch.cat([p[0] for p in parts]),
        states=torch.cat([p[1] for p in parts], dim=1),
        conditions=Conditions(
            text=join("text"),
            speak=join("speak"),
            listen=join("listen"),
            references=join("references"),
            reference_positions=parts[0][2].reference_positions,
        ),  # fmt: skip
        generator=torch.Generator(),
    )


def ode_batches(trajectories: Trajectories, steps: range, settings: Distillation) -> Iterator[Trajectories]:
    """Rows for each step, a pure function of (seed, step)."""
    for step in steps:
        generator = step_generator(settings.seed, step, "ode")
        index = torch.randperm(trajectories.clean.shape[0], generator=generator)[: settings.batch]
        yield trajectories.rows(index, generator)


def distill_online(
    base: Path,
    dataset: Path,
    folder: Path,
    settings: Distillation,
    progress: Track | None = None,
    *,
    logger: Any = False,
) -> dict[str, float]:
    """Distil a Base LPM folder into an Online LPM folder; a killed run goes on from its last saved state.

    Args:
        base: the teacher's folder.
        dataset: folder that curate wrote; its clips start and condition the roll-outs.
        folder: output.
        settings: of both stages.
        progress: shows the steps.
        logger: Lightning logger(s).

    Returns:
        Metrics: last losses of the stages.

    Raises:
        ValueError: folders that do not fit each other.
    """
    torch.manual_seed(settings.seed)
    config = read_model_config(base)
    encoder = load_autoencoder(base / "autoencoder")
    about = read_dataset(dataset, encoder.digest)
    online = OnlineModel(
        from_mapping(ModelConfig, config["model"]), settings.online, encoder, config["size_px"], encoders_of(base)
    )
    weights = read_weights(base / "model.safetensors")
    for network in online.networks.values():
        load_weights(network, weights, base / "model.safetensors")
    teacher = DiffusionTransformer(online.config).requires_grad_(False).eval()
    load_weights(teacher, weights, base / "model.safetensors")
    clips = read_clips(dataset)

    def batches(steps: range, size: int, seed: int) -> ClipBatches:
        return ClipBatches(
            clips, online, latents=settings.clip_latents, batch=size, steps=steps, seed=seed,
            draw=Draw(disturbance=settings.disturbance),
        )  # fmt: skip

    ode_loss = _regress(online, teacher, batches, folder, settings, progress, logger)
    dmd_loss_value = _match(online, teacher, batches, folder, settings, progress, logger)
    metrics = {"ode_loss": ode_loss, "dmd_loss": dmd_loss_value, "trajectories": float(settings.trajectories)}
    shape = {"model": to_mapping(online.config), "online": to_mapping(settings.online), "size_px": online.size_px}
    origin = {"dataset_digest": about["digest"], "parent": model_digest(base), "settings": to_mapping(settings)}
    save_model(folder, online.networks, shape, {**origin, "metrics": metrics})
    copy_autoencoder(base / "autoencoder", folder)
    copy_encoders(encoders_of(base), folder)
    for stage in ("state-ode", "state-dmd"):
        shutil.rmtree(folder / stage, ignore_errors=True)
    return metrics


def _regress(
    online: OnlineModel, teacher: DiffusionTransformer, batches: Any, folder: Path, settings: Distillation,
    progress: Track | None, logger: Any,
) -> float:  # fmt: skip
    """Stage 1 in place; its end is the start of stage 3."""
    state = StateFile(folder / "state-ode")
    module = OdeModule(online, settings, state.step())
    count = settings.trajectories // settings.batch
    source = batches(range(count), settings.batch, settings.seed + 1)
    wanted = iter(source) if progress is None else progress.track(source, "teacher trajectories", count)
    if module.start == settings.ode_steps:
        state.restore(module, [])
        return LossHistory(state.losses()).recent()
    trajectories = teacher_trajectories(teacher, wanted, settings)
    history = run(
        module, Again(lambda: ode_batches(trajectories, range(module.start, settings.ode_steps), settings)),
        settings.ode_steps, state, settings.checkpoint_steps,
        description="distil: ODE regression", progress=progress, clip_norm=None, logger=logger,
    )  # fmt: skip
    if settings.dmd_steps:
        state.save(module, [], settings.ode_steps, history.losses[-RECENT:])
    return history.recent()


def _match(
    online: OnlineModel, teacher: DiffusionTransformer, batches: Any, folder: Path, settings: Distillation,
    progress: Track | None, logger: Any,
) -> float:  # fmt: skip
    """Stage 3 in place; the student's average is what stays."""
    if not settings.dmd_steps:
        return float("nan")
    state = StateFile(folder / "state-dmd")
    module = DmdModule(online, teacher, settings, state.step())
    total = settings.dmd_steps * (settings.critic_steps + 1)
    history = run(
        module, batches(range(module.start, total), settings.batch, settings.seed + 2), total, state,
        settings.checkpoint_steps, description="distil: on-policy DMD", progress=progress, clip_norm=None,
        logger=logger,
    )  # fmt: skip
    online.backbone.load_state_dict(module.average.module.state_dict())
    return history.recent()
