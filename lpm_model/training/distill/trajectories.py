"""Teacher trajectories in safetensors shards: sampled once, shard by shard, and read row by row.

B rows, K noise levels whose states are stored, F latent frames.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lpm_model import flow
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.precision import native_autocast
from lpm_model.sampler import SHIFT, sample_window
from lpm_model.training.distill.config import Distillation
from lpm_model.training.engine.data import Batch, step_generator

CONDITIONS = ("text", "speak", "listen", "references")
"""Tensors of a shard next to `clean`, `states` and `positions`; a tensor that no row has is omitted."""


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Teacher trajectories of some clips."""

    clean: Tensor
    """[B, channels, F, h, w] the teacher's final clips."""
    states: Tensor
    """[B, K, channels, F, h, w] intermediate states, noisiest first."""
    sigmas: tuple[float, ...]
    """[K] their noise levels."""
    conditions: Conditions
    generator: torch.Generator
    """Draws the noise of the training step."""

    def to(self, device: torch.device, **_: Any) -> "Trajectories":
        """Return the trajectories on another device."""
        moved = self.conditions.map(lambda value: value.to(device))
        return replace(self, clean=self.clean.to(device), states=self.states.to(device), conditions=moved)


def stored_sigmas(settings: Distillation) -> tuple[float, ...]:
    """Return the noise levels whose states are stored: the student's or, for consistency, all of the teacher's."""
    if settings.ode.objective == "consistency":
        return tuple(flow.schedule(settings.teacher_steps, SHIFT)[:-1].tolist())
    return settings.online.backbone_sigmas


def sample_teacher(teacher: DiffusionTransformer, batch: Batch, settings: Distillation) -> dict[str, Tensor]:
    """Sample the teacher with guidance from the images of a batch and return the tensors of a shard."""
    levels, device = stored_sigmas(settings), batch.latents.device
    with native_autocast(device):
        clean, states = sample_window(
            teacher, batch.latents[:, :, :1], batch.latents.shape[2], batch.conditions,
            steps=settings.teacher_steps, guidance=settings.guidance, audio_guidance=settings.audio_guidance,
            generator=batch.generator, keep=levels,
        )  # fmt: skip
    found = {"clean": clean, "states": torch.stack([states[level] for level in levels], dim=1)}
    given = {name: getattr(batch.conditions, name) for name in CONDITIONS}
    found |= {name: value for name, value in given.items() if value is not None}
    stored = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in found.items()}
    positions = batch.conditions.reference_positions
    assert positions is not None
    return stored | {"positions": positions.expand(len(clean), -1).contiguous()}


def shards_key(settings: Distillation, teacher_digest: str, dataset_digest: str) -> str:
    """Return a 16-digit hash of everything that the shards depend on; distillations with the same key share them."""
    split = settings.collapse_monitor.held_out_fraction if settings.collapse_monitor.every_steps else 0.0
    decides = (
        teacher_digest, dataset_digest, stored_sigmas(settings), settings.teacher_steps, settings.guidance,
        settings.audio_guidance, settings.batch, settings.clip_latents, settings.noise_aug_prob, settings.seed, split,
    )  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


class TrajectoryShards:
    """The shards of a folder, `trajectories-NUMBER.safetensors`, with `settings.batch` rows each."""

    def __init__(self, folder: Path, settings: Distillation) -> None:
        self.folder, self.settings = folder, settings
        self.count = settings.trajectories // settings.batch

    def path(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.folder / f"trajectories-{number:06d}.safetensors"

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Return the shards that do not exist yet."""
        return [number for number in numbers if not self.path(number).is_file()]

    def write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Write a shard atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path(number).with_suffix(".partial")
        save_file(tensors, partial, metadata={"sigmas": json.dumps(stored_sigmas(self.settings))})
        os.replace(partial, self.path(number))

    def rows(self, numbers: Sequence[int], generator: torch.Generator) -> Trajectories:
        """Read only the given trajectories; number n is row n mod batch of shard n div batch."""
        read: list[dict[str, Tensor]] = []
        sigmas: tuple[float, ...] = ()
        for shard, row in (divmod(number, self.settings.batch) for number in numbers):
            with safe_open(self.path(shard), "pt") as file:
                sigmas = tuple(json.loads(file.metadata()["sigmas"]))
                names = list(file.keys())
                read.append({name: file.get_slice(name)[row : row + 1] for name in names})

        def join(name: str) -> Tensor | None:
            like = next((row[name] for row in read if name in row), None)
            if like is None:
                return None
            # A row without a caption has no text; in a batch with captions it gets an empty text.
            join_processes = torch.cat([row[name] if name in row else torch.zeros_like(like) for row in read])
            return join_processes.float() if join_processes.is_floating_point() else join_processes

        clean, states = join("clean"), join("states")
        assert clean is not None
        assert states is not None
        conditions = Conditions(
            text=join("text"), speak=join("speak"), listen=join("listen"), references=join("references"),
            reference_positions=join("positions"),
        )  # fmt: skip
        return Trajectories(clean, states, sigmas, conditions, generator)

    def batches(self, steps: range, rank: int = 0, world: int = 1) -> Iterator[Trajectories]:
        """Yield this process's rows of each step, a pure function of (seed, step)."""
        local_batch = self.settings.batch // world
        for step in steps:
            order = torch.randperm(
                self.count * self.settings.batch, generator=step_generator(self.settings.seed, step, "trajectories")
            )
            generator = step_generator(self.settings.seed, step * world + rank, "trajectory noise")
            yield self.rows(order[rank * local_batch : (rank + 1) * local_batch].tolist(), generator)
