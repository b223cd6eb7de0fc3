"""Training batches from dataset shards, a pure function of (seed, step), so that a resumed run sees the same data.

B batch, F latent frames of the window, R references, P latent frames of audio context, n audio tokens.
"""

import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import IterableDataset

from lpm_model.anchor import to_anchor
from lpm_model.character import CharacterModel, reference_positions
from lpm_model.config import FRAMES_PER_LATENT, SAMPLES_PER_LATENT, STATES
from lpm_model.dit import Conditions
from lpm_model.training.disturbance import disturbed


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of a dataset."""

    key: str
    latents: NDArray[np.float16]
    """[channels, 1 + k, h, w]."""
    references: NDArray[np.float16]
    """[R, channels, h, w], the global one first."""
    kinds: tuple[str, ...]
    speak: NDArray[np.int16]
    """[4000 k]."""
    listen: NDArray[np.int16]
    """[4000 k]."""
    caption: str
    states: NDArray[np.uint8]
    """[4 k] what the person does in each frame (config.STATES)."""


@dataclass(frozen=True, slots=True)
class Window:
    """Where one row of a batch comes from."""

    key: str
    """Clip."""
    start: int
    """Latent frame of the clip that the window begins with."""
    disturbed: tuple[bool, bool]
    """Whether the own voice, and the other's, come with a sound that is no speech."""
    corner: tuple[int, int] | None = None
    """Row and column of latent cells where a square begins; None for the whole picture."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step reads."""

    windows: tuple[Window, ...]
    latents: Tensor
    """[B, channels, F, h, w], relative to latent 0 (lpm_model.anchor)."""
    conditions: Conditions
    generator: torch.Generator
    """Of this step's noise."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Clips."""
        return tuple(window.key for window in self.windows)

    def to(self, device: torch.device, **_: Any) -> "Batch":
        """On another device."""
        moved = self.conditions.map(lambda value: value.to(device))
        return replace(self, latents=self.latents.to(device), conditions=moved)


def read_dataset(dataset: Path, autoencoder_digest: str) -> dict[str, Any]:
    """dataset.json, checked against the autoencoder that will decode what is trained on it.

    Raises:
        ValueError: no dataset, or one made with another autoencoder.
    """
    path = dataset / "dataset.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: run `lpm curate` first")
    about: dict[str, Any] = json.loads(path.read_text())
    if about["autoencoder_digest"] != autoencoder_digest:
        raise ValueError(f"{dataset} was encoded with another autoencoder: run `lpm curate` again with this one")
    return about


def read_clips(dataset: Path) -> list[Clip]:
    """Every clip of a dataset folder, in key order.

    Raises:
        ValueError: no shards, or a shard that is missing or cut off, with its name.
    """
    shards = sorted((dataset / "shards").glob("train-*.tar"))
    listed = json.loads((dataset / "dataset.json").read_text()).get("shards", [])
    lost = sorted(set(listed) - {shard.name for shard in shards})
    if lost:
        raise ValueError(f"{dataset / 'shards' / lost[0]} is missing: copy the whole dataset or run `lpm curate` again")
    if not shards:
        raise ValueError(f"{dataset} holds no shards: run `lpm curate` first")
    clips = []
    for shard in shards:
        _check_end(shard)
        try:
            rows = list(webdataset.WebDataset(str(shard), nodesplitter=None, shardshuffle=False, empty_check=False))
        except Exception as error:  # webdataset raises what the tar reader happens to raise
            raise ValueError(f"{shard} cannot be read ({error}): run `lpm curate` again") from error
        clips += [_clip(row, shard) for row in rows]
    if not clips:
        raise ValueError(f"{dataset} holds no clips: see its curation report")
    return sorted(clips, key=lambda clip: clip.key)


def _check_end(shard: Path) -> None:
    """A tar file ends in two empty blocks; one that is cut off between two clips shows in nothing else."""
    with shard.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 1024))
        if file.read() != bytes(1024):
            raise ValueError(f"{shard} is cut off: copy it again or run `lpm curate` again")


def _clip(row: dict[str, Any], shard: Path) -> Clip:
    missing = [part for part in ("latents.npy", "references.npy", "speak.npy", "listen.npy", "json") if part not in row]
    if missing:
        raise ValueError(f"{shard}: clip {row.get('__key__')} lacks {', '.join(missing)}; run `lpm curate` again")

    def array(name: str) -> NDArray[Any]:
        loaded: NDArray[Any] = np.load(io.BytesIO(row[name]), allow_pickle=False)
        return loaded

    meta, latents = json.loads(row["json"]), array("latents.npy")
    frames = (latents.shape[1] - 1) * FRAMES_PER_LATENT
    return Clip(
        key=row["__key__"], latents=latents, references=array("references.npy"),
        kinds=tuple(meta["reference_kinds"]), speak=array("speak.npy"), listen=array("listen.npy"),
        caption=meta["caption"], states=_state_track(meta.get("states"), frames),
    )  # fmt: skip


def _state_track(runs: Sequence[Sequence[int]] | None, frames: int) -> NDArray[np.uint8]:
    """[frames] from its run-length code ([[state, frames], ...], the image's frame left out); idle where unknown."""
    if runs is None:
        return np.full(frames, STATES["idle"], np.uint8)
    track = np.concatenate([np.full(length, state, np.uint8) for state, length in runs])
    return track[len(track) - frames :]


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Randomness that depends on nothing but its arguments."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{step}/{purpose}".encode()))


def crop_to_motion(
    latents: Tensor, conditions: Conditions, side: int, generator: torch.Generator
) -> tuple[Tensor, Conditions, list[tuple[int, int]]]:
    """A square of every clip and its references, drawn where the clip moves quickly: mostly the mouth.

    Positions are relative in the model (RoPE), so what is learned on squares holds for whole pictures at a fraction
    of their tokens.

    Args:
        latents: [B, channels, F, h, w].
        conditions: references [B, R, channels, h, w] are cut alike.
        side: of the square in latent cells, even; no more than there are.
        generator: draws the places.

    Returns:
        The cut latents and conditions, and the squares' corners (row and column of cells).
    """
    side = min(side, *latents.shape[3:])
    speed = latents.diff(dim=2).square().mean(dim=(1, 2))
    boxes = functional.avg_pool2d(speed[:, None], side, stride=2)[:, 0]
    chance = boxes.flatten(1).square() + 1e-12
    picked = torch.multinomial(chance, 1, generator=generator)[:, 0].tolist()
    corners = [(2 * (at // boxes.shape[2]), 2 * (at % boxes.shape[2])) for at in picked]

    def cut(value: Tensor) -> Tensor:
        rows = zip(value, corners, strict=True)
        return torch.stack([row[..., top : top + side, left : left + side] for row, (top, left) in rows])

    assert conditions.references is not None
    return cut(latents), replace(conditions, references=cut(conditions.references)), corners


@dataclass(frozen=True, kw_only=True, slots=True)
class Squares:
    """Which steps see squares of the clips instead of whole pictures (see `crop_to_motion`)."""

    steps: int
    """No squares from this step on."""
    whole_every: int
    """Every so many-th step before it sees whole pictures too."""
    batch: int
    """Clips in a step on squares."""
    cells: int
    """Side of a square in latent cells, even."""

    def at(self, step: int) -> bool:
        """Whether a step sees squares."""
        return step < self.steps and (step + 1) % self.whole_every != 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Which windows are drawn, and what of their conditions is given."""

    voices: tuple[str, ...] = ("speak", "listen")
    """Voices; a null stands in for the other."""
    states: tuple[str, ...] = tuple(STATES)
    """A window's chance is its share of frames in these (config.STATES)."""
    expressive: float = 0.0
    """Exponent of its motion in that chance."""
    references: int = 1
    """Most references, the global one first."""
    reference_chance: float = 0.0
    """Chance of more than the global one."""
    image_start: float = 0.5
    """Chance that a window starts at the image."""
    disturbance: float = 0.0
    """Chance, each, of noise or a chord under a voice."""

    def weights(self, clip: Clip, latents: int) -> Tensor:
        """Of each window of a clip, [windows]: its share of frames in the wanted states, by its motion if asked."""
        wanted = np.isin(clip.states, [STATES[name] for name in self.states]).astype(np.float64)
        total = np.concatenate([[0.0], wanted.cumsum()])
        span = (latents - 1) * FRAMES_PER_LATENT
        share = (total[span:] - total[:-span])[::FRAMES_PER_LATENT] / span
        if self.expressive:
            speed = np.square(np.diff(clip.latents.astype(np.float32), axis=1)).mean(axis=(0, 2, 3))
            moved = np.concatenate([[0.0], speed.cumsum()])
            share = share * ((moved[latents - 1 :] - moved[: 1 - latents]) / (latents - 1)) ** self.expressive
        return torch.from_numpy(share).float()


class ClipBatches(IterableDataset[Batch]):
    """Windows of equal length, drawn with a chance proportional to what each clip holds."""

    def __init__(
        self,
        clips: Sequence[Clip],
        model: CharacterModel,
        *,
        latents: int,
        batch: int,
        steps: range,
        seed: int,
        squares: Squares | None = None,
        draw: Draw | None = None,
    ) -> None:
        self.draw = draw or Draw()
        long_enough = [clip for clip in clips if clip.latents.shape[1] >= latents]
        if not long_enough:
            longest = max(clip.latents.shape[1] for clip in clips)
            raise ValueError(f"no clip has {latents} latent frames (the longest has {longest}): lower clip_latents")
        windows = [self.draw.weights(clip, latents) for clip in long_enough]
        self.clips = [clip for clip, weights in zip(long_enough, windows, strict=True) if weights.sum() > 0]
        self.windows = [weights for weights in windows if weights.sum() > 0]
        if not self.clips:
            raise ValueError(f"no clip shows anybody in the states {', '.join(self.draw.states)}: choose other states")
        self.model, self.latents, self.batch, self.steps, self.seed = model, latents, batch, steps, seed
        self.weights = torch.stack([weights.sum() for weights in self.windows])
        self.squares = squares
        self.features: dict[tuple[str, bool], Tensor] = {}

    def __iter__(self) -> Iterator[Batch]:
        for step in self.steps:
            yield self.make(step)

    def make(self, step: int) -> Batch:
        """The batch of one step."""
        generator = step_generator(self.seed, step, "data")
        squares = self.squares if self.squares is not None and self.squares.at(step) else None
        batch = self.batch if squares is None else squares.batch
        picked = torch.multinomial(self.weights, batch, True, generator=generator).tolist()
        rows = [self.clips[i] for i in picked]
        starts = [self._start(self.windows[i], generator) for i in picked]
        latents = self._windows(rows, starts)
        noisy = (torch.rand(2, batch, generator=generator) < self.draw.disturbance).tolist()
        conditions = self._conditions(rows, starts, noisy, generator)
        corners: Sequence[tuple[int, int] | None] = [None] * batch
        if squares is not None:
            latents, conditions, corners = crop_to_motion(latents, conditions, squares.cells, generator)
        origins = zip(rows, starts, *noisy, corners, strict=True)
        return Batch(
            windows=tuple(Window(clip.key, start, (own, other), at) for clip, start, own, other, at in origins),
            latents=to_anchor(latents, self.model.config.anchor_gain),
            conditions=conditions,
            generator=self.noise(step),
        )

    def noise(self, step: int) -> torch.Generator:
        """Of a step's noise."""
        return step_generator(self.seed, step, "noise")

    def _start(self, weights: Tensor, generator: torch.Generator) -> int:
        """Where a window of a clip begins."""
        from_image = bool(torch.rand(1, generator=generator) < self.draw.image_start) and weights[0] > 0
        return 0 if from_image else int(torch.multinomial(weights, 1, generator=generator))

    def _windows(self, rows: Sequence[Clip], starts: Sequence[int]) -> Tensor:
        cut = [clip.latents[:, s : s + self.latents] for clip, s in zip(rows, starts, strict=True)]
        return torch.from_numpy(np.stack(cut)).float()

    def _conditions(
        self, rows: Sequence[Clip], starts: Sequence[int], noisy: Sequence[Sequence[bool]], generator: torch.Generator
    ) -> Conditions:
        span = self.latents + self.model.config.context_latents
        heard: dict[str, Tensor | None] = {
            name: torch.stack(
                [
                    self._features(clip, disturb)[role, start : start + span]
                    for clip, start, disturb in zip(rows, starts, noisy[role], strict=True)
                ]
            ).float()
            if name in self.draw.voices
            else None
            for role, name in enumerate(("speak", "listen"))
        }
        kinds = self._kinds(rows, generator)
        pictures = [clip.references[[clip.kinds.index(kind) for kind in kinds]] for clip in rows]
        return Conditions(
            text=self.model.text([clip.caption for clip in rows]),
            references=torch.from_numpy(np.stack(pictures)).float(),
            reference_positions=reference_positions(kinds),
            **heard,
        )

    def _kinds(self, rows: Sequence[Clip], generator: torch.Generator) -> list[str]:
        """Kinds of references for a batch: the global one, and at times more that all its clips have."""
        first = rows[0].kinds[0]
        if self.draw.references == 1 or torch.rand(1, generator=generator) >= self.draw.reference_chance:
            return [first]
        shared = [kind for kind in rows[0].kinds[1:] if all(kind in clip.kinds for clip in rows)]
        order = torch.randperm(len(shared), generator=generator)[: self.draw.references - 1].tolist()
        return [first, *(shared[i] for i in sorted(order))]

    def voices(self, clip: Clip, noisy: bool) -> Tensor:
        """Both voices of a clip in [-1, 1], [2, 4000 k], as they are or under disturbance."""
        pair = torch.from_numpy(np.stack([clip.speak, clip.listen])).float() / 32768
        expected = (clip.latents.shape[1] - 1) * SAMPLES_PER_LATENT
        if pair.shape[1] != expected:
            raise ValueError(f"clip {clip.key} has {pair.shape[1]} samples for {expected}: run `lpm curate` again")
        if not noisy:
            return pair
        generator = step_generator(self.seed, zlib.crc32(clip.key.encode()), "disturbance")
        return torch.stack([disturbed(voice, generator) for voice in pair])

    def _features(self, clip: Clip, noisy: bool) -> Tensor:
        """Features of both voices, [2, P + 1 + k, n, width], computed once a clip and once more under disturbance."""
        if (clip.key, noisy) not in self.features:
            self.features[clip.key, noisy] = self.model.clip_features(self.voices(clip, noisy)).to(torch.bfloat16)
        return self.features[clip.key, noisy]
