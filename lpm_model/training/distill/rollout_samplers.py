"""Rollout samplers: the clips of a student or refiner that distribution matching trains on.

All clips come from the block loop of lpm_model.rollout.

B rows, F latent frames of a clip with its given first one, c of a chunk, P of audio context.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lpm_model import flow
from lpm_model.cache import KVCache
from lpm_model.character import Character
from lpm_model.dit import Conditions
from lpm_model.rollout import BlockLoop, Chunk, Noise, chunk_conditions
from lpm_model.training.distill.config import Distillation
from lpm_model.training.distill.roles import ModelRoles, Role
from lpm_model.training.distill.trajectories import Trajectories
from lpm_model.training.engine.data import Batch


@dataclass(frozen=True, slots=True)
class Sample:
    """A generated clip."""

    clip: Tensor
    """[B, channels, F, h, w]; latent 0 is given, the others are residuals to it (lpm_model.latent_codec)."""
    conditions: Conditions
    first: int = 1
    """First latent frame that was generated under these conditions; earlier ones are excluded from the loss."""
    target: Tensor | None = None
    """[B, channels, F, h, w] the teacher's clip that this one was generated from."""


class RolloutSampler(Protocol):
    """Generates clips with the network of one role."""

    role: Role

    def sample(self, batch: Batch | Trajectories, shared: torch.Generator, *, train: bool) -> Sample:
        """Generate a clip.

        Args:
            batch: provides image, conditions and noise.
            shared: draws whatever must be the same on all ranks.
            train: with gradients.
        """
        ...


@dataclass(frozen=True, slots=True)
class RolloutSpans:
    """Boundaries within a rollout, in latent frames."""

    first: int
    """Start of the matched clip, which is the last part of the rollout."""
    gradient_start: int
    """Start of the chunks with gradients."""
    end: int
    """End of the last chunk."""

    @classmethod
    def of(cls, latents: int, chunk: int, settings: Distillation) -> "RolloutSpans":
        """Return the boundaries of a rollout of `latents` latent frames in chunks of `chunk`."""
        end = 1 + (latents - 1) // chunk * chunk
        first = max(0, end - settings.clip_latents)
        bound = max(first + 1, end - (settings.gradient_latents or latents))
        return cls(first, min(end - chunk, 1 + -(-(bound - 1) // chunk) * chunk), end)


def start_cache(online: BlockLoop, image: Tensor, conditions: Conditions, *, refiner: bool = False) -> KVCache:
    """Create a cache prefilled with the characters of a batch; image [B, channels, 1, h, w]."""
    assert conditions.references is not None
    assert conditions.reference_positions is not None
    character = Character(image, conditions.references, conditions.reference_positions)
    return online.prefill(character, refiner=refiner)


def rollout_noise(online: BlockLoop, image: Tensor, generator: torch.Generator) -> Noise:
    """Return the noise source of a rollout's chunks."""
    batch, channels, _, height, width = image.shape
    return Noise((batch, channels, online.chunk_latents, height, width), generator, image.device)


def clip_conditions(conditions: Conditions, context: int, first: int, frames: int) -> Conditions:
    """Cut the conditions of `frames` latent frames, from latent frame `first` of a rollout; `context` is P."""
    cut = chunk_conditions(conditions, context, first, frames)
    return replace(cut, references=conditions.references, reference_positions=conditions.reference_positions)


def _refine(
    roles: ModelRoles, cache: KVCache, coarse: Iterator[tuple[slice, Tensor]], conditions: Conditions, noise: Noise,
    spans: RolloutSpans, *, train: bool,
) -> Iterator[tuple[slice, Tensor]]:  # fmt: skip
    """Yield the chunks of a student's rollout, refined one by one, so that memory does not grow with its length.

    Args:
        roles: student and refiner.
        cache: cache of the refiner.
        coarse: the student's rollout.
        conditions: conditions of the rollout.
        noise: noise source of the refiner.
        spans: boundaries of the rollout.
        train: with gradients from `spans.gradient_start`.
    """
    online = roles.online
    written = (0,) if online.online.history == "per_step" else ()

    def make(span: slice, given: Conditions) -> Chunk:
        with roles.activate("student"), torch.no_grad():
            _, chunk = next(coarse)
        with torch.set_grad_enabled(train and span.start >= spans.gradient_start):
            fine = online.refine(cache, chunk, given, noise)
        return Chunk(fine, fine, written)

    return online.rollout_with(make, cache, conditions, spans.end, noise, first=1, refiner=True)


def rollout_of_role(
    roles: ModelRoles, role: Role, batch: Batch, spans: RolloutSpans, exit_index: int | None, *, train: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the chunks of a rollout from a batch's image, by the student or, for the refiner, by both."""
    online, image, conditions = roles.online, batch.latents[:, :, :1], batch.conditions
    noise = rollout_noise(online, image, batch.generator)
    train_student = train and role == "student"
    with roles.activate("student"):
        cache = start_cache(online, image, conditions)

    def chunks() -> Iterator[tuple[slice, Tensor]]:
        for first, end, graph in ((1, spans.gradient_start, False), (spans.gradient_start, spans.end, train_student)):
            yield from online.rollout(cache, conditions, end, noise, first=first, exit_index=exit_index, train=graph)

    if role == "student":
        return chunks()
    with roles.activate("refiner"):
        refiner_cache = start_cache(online, image, conditions, refiner=True)
    return _refine(roles, refiner_cache, chunks(), conditions, noise, spans, train=train)


class OffPolicySampler:
    """The student on the teacher's clips, re-noised, with the teacher's history (paper section 4.2, stage 2)."""

    role: Role = "student"

    def __init__(self, roles: ModelRoles, settings: Distillation) -> None:
        self.roles, self.settings = roles, settings

    def sample(self, batch: Batch | Trajectories, shared: torch.Generator, *, train: bool) -> Sample:
        assert isinstance(batch, Trajectories)
        online, teacher = self.roles.online, batch.clean
        image, sigmas = teacher[:, :, :1], online.online.backbone_sigmas
        noise = rollout_noise(online, image, batch.generator)
        spans = RolloutSpans.of(teacher.shape[2], online.chunk_latents, self.settings)

        def make(span: slice, given: Conditions) -> Chunk:
            index = int(torch.randint(len(sigmas), (1,), generator=batch.generator))
            noisy = flow.interpolate(teacher[:, :, span], noise.draw(), torch.tensor(sigmas[index]))
            with torch.set_grad_enabled(train and span.start >= spans.gradient_start):
                return Chunk(online.denoise(cache, noisy, index, given), cached=teacher[:, :, span])

        with self.roles.activate("student"):
            cache = start_cache(online, image, batch.conditions)
            rollout = online.rollout_with(make, cache, batch.conditions, spans.end, noise, first=1)
            chunks = [chunk for _, chunk in rollout]
        clip = torch.cat([image, *chunks], dim=2)
        return Sample(clip, batch.conditions, target=teacher[:, :, : clip.shape[2]])


class OnPolicySampler:
    """Student or refiner on the student's own rollouts (https://arxiv.org/abs/2506.08009; paper 4.2, stages 3 and 4).

    The end of a rollout is matched. Only its last latent frames carry gradients and only they are stored, so that the
    memory does not grow with its length. The student's exit step is random; the refiner gets fully denoised chunks.
    """

    def __init__(self, roles: ModelRoles, settings: Distillation, role: Role) -> None:
        self.roles, self.settings, self.role = roles, settings, role

    def sample(self, batch: Batch | Trajectories, shared: torch.Generator, *, train: bool) -> Sample:
        assert isinstance(batch, Batch)
        online, clip = self.roles.online, batch.latents[:, :, :1]
        spans = RolloutSpans.of(batch.latents.shape[2], online.chunk_latents, self.settings)
        exit_index = draw_exit_index(online, shared) if self.role == "student" else None
        with self.roles.activate(self.role):
            for _, chunk in rollout_of_role(self.roles, self.role, batch, spans, exit_index, train=train):
                clip = torch.cat([clip, chunk], dim=2)[:, :, spans.first - spans.end :]
        conditions = clip_conditions(batch.conditions, online.config.context_latents, spans.first, clip.shape[2])
        if spans.first:
            clip = online.codec.rebase(clip, batch.latents[:, :, :1])
        return Sample(clip, conditions)


def draw_exit_index(online: BlockLoop, shared: torch.Generator) -> int:
    """Draw the index of the noise level at which a rollout's chunks exit (arXiv 2506.08009), equal on all ranks."""
    return int(torch.randint(len(online.online.backbone_sigmas), (1,), generator=shared))
