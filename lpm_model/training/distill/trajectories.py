"""Teacher trajectories in safetensors shards: made once, shard by shard, and read row by row.

B rows, K noise levels at which states are kept, F latent frames.
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
from lpm_model.precision import products
from lpm_model.sampler import SHIFT, sample_window
from lpm_model.training.config import Distillation
from lpm_model.training.engine.data import Batch, step_generator

CONDITIONS = ("text", "speak", "listen", "references")
"""What a shard holds beside `clean`, `states` and `positions`; what no row of it has is left out."""


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Teacher trajectories of some clips."""

    clean: Tensor
    """[B, channels, F, h, w] where the teacher ends."""
    states: Tensor
    """[B, K, channels, F, h, w] the teacher's states, noisiest first."""
    sigmas: tuple[float, ...]
    """[K] their noise levels."""
    conditions: Conditions
    generator: torch.Generator
    """Of the noise of the step that reads them."""

    def to(self, device: torch.device, **_: Any) -> "Trajectories":
        """On another device."""
        moved = self.conditions.map(lambda value: value.to(device))
        return replace(self, clean=self.clean.to(device), states=self.states.to(device), conditions=moved)


def levels_of(settings: Distillation) -> tuple[float, ...]:
    """Noise levels whose states are kept: the student's, or, for consistency, all that the teacher goes through."""
    if settings.ode.objective == "consistency":
        return tuple(flow.schedule(settings.teacher_steps, SHIFT)[:-1].tolist())
    return settings.online.backbone_sigmas


def sample_teacher(teacher: DiffusionTransformer, batch: Batch, settings: Distillation) -> dict[str, Tensor]:
    """What a shard holds: the teacher, sampled with guidance from the images of a batch."""
    levels, device = levels_of(settings), batch.latents.device
    with products(device):
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
    """What decides what the shards hold, in 16 letters; two distillations with one key can share them."""
    split = settings.collapse_monitor.held_out_fraction if settings.collapse_monitor.every_steps else 0.0
    decides = (
        teacher_digest, dataset_digest, levels_of(settings), settings.teacher_steps, settings.guidance,
        settings.audio_guidance, settings.batch, settings.clip_latents, settings.noise_aug_prob, settings.seed, split,
    )  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


class TrajectoryShards:
    """The shards of a folder, `trajectories-NUMBER.safetensors`, with `settings.batch` rows each."""

    def __init__(self, folder: Path, settings: Distillation) -> None:
        self.folder, self.settings = folder, settings
        self.count = settings.trajectories // settings.batch

    def path(self, number: int) -> Path:
        """Of a shard."""
        return self.folder / f"trajectories-{number:06d}.safetensors"

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those that have not been made."""
        return [number for number in numbers if not self.path(number).is_file()]

    def write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Write a shard; it is there as a whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path(number).with_suffix(".partial")
        save_file(tensors, partial, metadata={"sigmas": json.dumps(levels_of(self.settings))})
        os.replace(partial, self.path(number))

    def rows(self, numbers: Sequence[int], generator: torch.Generator) -> Trajectories:
        """Some trajectories; row n is row n mod batch of shard n div batch, and no other is read."""
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
            # A row without any caption has no text; beside one with captions it reads as empty texts do there.
            joined = torch.cat([row[name] if name in row else torch.zeros_like(like) for row in read])
            return joined.float() if joined.is_floating_point() else joined

        clean, states = join("clean"), join("states")
        assert clean is not None
        assert states is not None
        conditions = Conditions(
            text=join("text"), speak=join("speak"), listen=join("listen"), references=join("references"),
            reference_positions=join("positions"),
        )  # fmt: skip
        return Trajectories(clean, states, sigmas, conditions, generator)

    def batches(self, steps: range, rank: int = 0, world: int = 1) -> Iterator[Trajectories]:
        """This process's rows of each step, a pure function of (seed, step)."""
        share = self.settings.batch // world
        for step in steps:
            order = torch.randperm(
                self.count * self.settings.batch, generator=step_generator(self.settings.seed, step, "trajectories")
            )
            generator = step_generator(self.settings.seed, step * world + rank, "trajectory noise")
            yield self.rows(order[rank * share : (rank + 1) * share].tolist(), generator)
