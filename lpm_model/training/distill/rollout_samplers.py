"""What distribution matching looks at: clips that a student makes, all through the block loop of lpm_model.rollout.

B rows, F latent frames of a clip with its known first one, c of a chunk, P of audio context.
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
    """What a student made."""

    clip: Tensor
    """[B, channels, F, h, w]; latent 0 is known, the others are relative to it (lpm_model.latent_codec)."""
    conditions: Conditions
    """Of the clip."""
    first: int = 1
    """First latent frame that was made under these conditions; those before it do not count."""
    target: Tensor | None = None
    """[B, channels, F, h, w] the teacher's clip that this one was made from."""


class RolloutSampler(Protocol):
    """Makes clips of one role."""

    role: Role

    def sample(self, batch: Batch | Trajectories, shared: torch.Generator, *, train: bool) -> Sample:
        """A clip.

        Args:
            batch: its image, conditions and noise.
            shared: draws what all ranks do alike.
            train: with gradients.
        """
        ...


@dataclass(frozen=True, slots=True)
class RolloutSpans:
    """Latent frames of a roll-out."""

    first: int
    """The clip that is looked at begins here."""
    begin: int
    """The chunks that carry a graph begin here."""
    end: int
    """The last chunk ends here."""

    @classmethod
    def of(cls, latents: int, chunk: int, settings: Distillation) -> "RolloutSpans":
        """Of a roll-out of so many latent frames."""
        end = 1 + (latents - 1) // chunk * chunk
        first = max(0, end - settings.clip_latents)
        bound = max(first + 1, end - (settings.gradient_latents or latents))
        return cls(first, min(end - chunk, 1 + -(-(bound - 1) // chunk) * chunk), end)


def start_cache(online: BlockLoop, image: Tensor, conditions: Conditions, *, refiner: bool = False) -> KVCache:
    """A cache primed with the characters of a batch; image [B, channels, 1, h, w]."""
    assert conditions.references is not None
    assert conditions.reference_positions is not None
    character = Character(image, conditions.references, conditions.reference_positions)
    return online.prefill(character, refiner=refiner)


def rollout_noise(online: BlockLoop, image: Tensor, generator: torch.Generator) -> Noise:
    """Of the chunks of a roll-out."""
    batch, channels, _, height, width = image.shape
    return Noise((batch, channels, online.chunk_latents, height, width), generator, image.device)


def clip_conditions(conditions: Conditions, context: int, first: int, frames: int) -> Conditions:
    """Of a clip of `frames` latent frames from latent frame `first` of a roll-out on."""
    cut = chunk_conditions(conditions, context, first, frames)
    return replace(cut, references=conditions.references, reference_positions=conditions.reference_positions)


def refine_rollout(
    roles: ModelRoles, cache: KVCache, coarse: Iterator[tuple[slice, Tensor]], conditions: Conditions, noise: Noise,
    spans: RolloutSpans, *, train: bool,
) -> Iterator[tuple[slice, Tensor]]:  # fmt: skip
    """The refiner's chunks from those of a backbone's roll-out, chunk by chunk, so that neither is held whole.

    Args:
        roles: student and refiner.
        cache: the refiner's.
        coarse: the backbone's roll-out.
        conditions: of the roll-out.
        noise: of the refiner.
        spans: of the roll-out.
        train: with gradients from `spans.begin` on.
    """
    online = roles.online
    written = (0,) if online.online.history == "per_step" else ()

    def make(span: slice, heard: Conditions) -> Chunk:
        with roles.activate("student"), torch.no_grad():
            _, chunk = next(coarse)
        with torch.set_grad_enabled(train and span.start >= spans.begin):
            fine = online.refine(cache, chunk, heard, noise)
        return Chunk(fine, fine, written)

    return online.rollout_with(make, cache, conditions, spans.end, noise, first=1, refiner=True)


def student_rollout(
    roles: ModelRoles, role: Role, batch: Batch, spans: RolloutSpans, exit_index: int | None, *, train: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of the student from noise after a batch's image, or, for the refiner, of both."""
    online, image, heard = roles.online, batch.latents[:, :, :1], batch.conditions
    noise = rollout_noise(online, image, batch.generator)
    backbone = train and role == "student"
    with roles.activate("student"):
        cache = start_cache(online, image, heard)

    def chunks() -> Iterator[tuple[slice, Tensor]]:
        for first, end, graph in ((1, spans.begin, False), (spans.begin, spans.end, backbone)):
            yield from online.rollout(cache, heard, end, noise, first=first, exit_index=exit_index, train=graph)

    if role == "student":
        return chunks()
    with roles.activate("refiner"):
        own = start_cache(online, image, heard, refiner=True)
    return refine_rollout(roles, own, chunks(), heard, noise, spans, train=train)


class OffPolicySampler:
    """The student on the teacher's clips, re-noised, over the teacher's history (paper section 4.2, stage 2)."""

    role: Role = "student"

    def __init__(self, roles: ModelRoles, settings: Distillation) -> None:
        self.roles, self.settings = roles, settings

    def sample(self, batch: Batch | Trajectories, shared: torch.Generator, *, train: bool) -> Sample:
        assert isinstance(batch, Trajectories)
        online, teacher = self.roles.online, batch.clean
        image, sigmas = teacher[:, :, :1], online.online.backbone_sigmas
        noise = rollout_noise(online, image, batch.generator)
        spans = RolloutSpans.of(teacher.shape[2], online.chunk_latents, self.settings)

        def make(span: slice, heard: Conditions) -> Chunk:
            index = int(torch.randint(len(sigmas), (1,), generator=batch.generator))
            noisy = flow.interpolate(teacher[:, :, span], noise.draw(), torch.tensor(sigmas[index]))
            with torch.set_grad_enabled(train and span.start >= spans.begin):
                return Chunk(online.denoise(cache, noisy, index, heard), cached=teacher[:, :, span])

        with self.roles.activate("student"):
            cache = start_cache(online, image, batch.conditions)
            rollout = online.rollout_with(make, cache, batch.conditions, spans.end, noise, first=1)
            made = [chunk for _, chunk in rollout]
        clip = torch.cat([image, *made], dim=2)
        return Sample(clip, batch.conditions, target=teacher[:, :, : clip.shape[2]])


class OnPolicySampler:
    """Student or refiner on the student's own roll-outs (https://arxiv.org/abs/2506.08009; paper 4.2, stages 3 and 4).

    The end of a roll-out is looked at. Only its last latent frames carry a graph and no others are held, so that the
    memory does not grow with its length. The student's exit step is random; the refiner has whole chunks to work on.
    """

    def __init__(self, roles: ModelRoles, settings: Distillation, role: Role) -> None:
        self.roles, self.settings, self.role = roles, settings, role

    def sample(self, batch: Batch | Trajectories, shared: torch.Generator, *, train: bool) -> Sample:
        assert isinstance(batch, Batch)
        online, held = self.roles.online, batch.latents[:, :, :1]
        spans = RolloutSpans.of(batch.latents.shape[2], online.chunk_latents, self.settings)
        exit_index = draw_exit_index(online, shared) if self.role == "student" else None
        with self.roles.activate(self.role):
            for _, chunk in student_rollout(self.roles, self.role, batch, spans, exit_index, train=train):
                held = torch.cat([held, chunk], dim=2)[:, :, spans.first - spans.end :]
        heard = clip_conditions(batch.conditions, online.config.context_latents, spans.first, held.shape[2])
        clip = online.codec.rebase(held, batch.latents[:, :, :1]) if spans.first else held
        return Sample(clip, heard)


def draw_exit_index(online: BlockLoop, shared: torch.Generator) -> int:
    """Index of the noise level after which a roll-out's chunks are taken (arXiv 2506.08009), alike on all ranks."""
    return int(torch.randint(len(online.online.backbone_sigmas), (1,), generator=shared))
