"""Training batches from dataset shards, a pure function of (seed, step), so that a resumed run sees the same data.

Processes and the workers of a loader share them out; see `ClipBatches`.

B batch, F latent frames of the window, R references, P latent frames of audio context, n audio tokens.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lpm_model.character import CharacterModel, reference_positions
from lpm_model.config import FRAMES_PER_LATENT, SAMPLES_PER_LATENT, STATES
from lpm_model.dit import Conditions
from lpm_model.training.engine.noise_augmentation import disturbed
from lpm_model.training.engine.shard_reader import KEPT_BYTES, Clip, ClipFacts, Clips, Recent, facts_of


@dataclass(frozen=True, slots=True)
class Window:
    """Where one row of a batch comes from."""

    key: str
    """Clip."""
    start: int
    """Latent frame of the clip that the window begins with."""
    latents: int
    """Latent frames of the window."""
    disturbed: tuple[bool, bool]
    """Whether the own voice, and the other's, come with a sound that is no speech."""
    corner: tuple[int, int] | None = None
    """Row and column of latent cells where a square begins; None for the whole picture."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step reads."""

    windows: tuple[Window, ...]
    latents: Tensor
    """[B, channels, F, h, w], relative to latent 0 (lpm_model.latent_codec)."""
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
    full_frame_every: int
    """Every so many-th step before it sees whole pictures too."""
    batch: int
    """Clips in a step on squares."""
    cells: int
    """Side of a square in latent cells, even."""

    def at(self, step: int) -> bool:
        """Whether a step sees squares."""
        return step < self.steps and (step + 1) % self.full_frame_every != 0


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
    reference_prob: float = 0.0
    """Chance of more than the global one."""
    image_start_prob: float = 0.5
    """Chance that a window starts at the image."""
    noise_aug_prob: float = 0.0
    """Chance, each, of noise or a chord under a voice."""

    def weights(self, facts: ClipFacts, latents: int, motion: NDArray[np.float32] | None = None) -> Tensor:
        """Of each window of a clip, [windows]: its share of frames in the wanted states, by its motion if asked.

        Args:
            facts: of the clip.
            latents: latent frames of a window.
            motion: [k] see `motion_of`; needed for expressive windows only.
        """
        wanted = np.isin(facts.states, [STATES[name] for name in self.states]).astype(np.float64)
        total = np.concatenate([[0.0], wanted.cumsum()])
        span = (latents - 1) * FRAMES_PER_LATENT
        share = (total[span:] - total[:-span])[::FRAMES_PER_LATENT] / span
        if self.expressive and motion is not None:
            moved = np.concatenate([[0.0], motion.cumsum()])
            share = share * ((moved[latents - 1 :] - moved[: 1 - latents]) / (latents - 1)) ** self.expressive
        return torch.from_numpy(share).float()


def motion_of(clip: Clip) -> NDArray[np.float32]:
    """Mean square change between neighbouring latent frames of a clip, [k]."""
    speed: NDArray[np.float32] = np.square(np.diff(clip.latents.astype(np.float32), axis=1)).mean(axis=(0, 2, 3))
    return speed


@dataclass(frozen=True, slots=True)
class Bucket:
    """Clips whose windows make batches of one shape."""

    latents: int
    """Latent frames of a window."""
    grid: tuple[int, int]
    """Rows and columns of latent cells."""
    batch: int
    """Clips in a batch of whole pictures."""
    squares: int
    """Clips in a batch of squares."""
    places: tuple[int, ...]
    """Of its clips in the dataset."""
    weights: Tensor
    """[clips] chance of each."""


class ClipBatches(IterableDataset[Batch]):
    """Windows drawn with a chance proportional to what each clip holds, in batches of one length and one grid.

    A clip is drawn at `latents` latent frames or, where it is shorter, at the longest of `shorter` that it holds. A
    batch comes from one bucket of clips of one window length and one grid, the same bucket in a whole optimizer step.

    Args:
        clips: the dataset.
        model: its encoders make the conditions.
        latents: latent frames of a window.
        batch: most clips of a batch.
        steps: steps whose batches iteration gives; what is left of them where a run goes on.
        seed: of all that is drawn.
        squares: steps on squares.
        draw: what is drawn.
        shorter: other lengths of a window, for clips that are too short.
        tokens: most video tokens of a batch; 0 sets no bound.
        together: batches of one optimizer step, which processes may share out: all of one shape.
        kept_bytes: bound of the audio features that stay in memory.
    """

    def __init__(
        self,
        clips: Clips,
        model: CharacterModel,
        *,
        latents: int,
        batch: int,
        steps: range,
        seed: int,
        squares: Squares | None = None,
        draw: Draw | None = None,
        shorter: Sequence[int] = (),
        tokens: int = 0,
        together: int = 1,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.draw, self.squares = draw or Draw(), squares
        self.clips, self.model, self.batch, self.steps, self.seed = clips, model, batch, steps, seed
        self.tokens, self.together = tokens, together
        self.facts = facts_of(clips)
        self.motion = [motion_of(clip) for clip in clips] if self.draw.expressive else None
        self.buckets = self._fill(sorted({latents, *shorter}, reverse=True))
        chances = [float(bucket.weights.sum()) / bucket.batch for bucket in self.buckets]
        self.chances = torch.tensor(chances)
        self.features: Recent[tuple[str, bool], Tensor] = Recent(kept_bytes, lambda value: value.nbytes)

    def _fill(self, lengths: Sequence[int]) -> list[Bucket]:
        """Every bucket that holds a clip, longest windows first."""
        kept: dict[tuple[int, tuple[int, int]], list[tuple[int, Tensor]]] = {}
        long_enough = False
        for place, facts in enumerate(self.facts):
            latents = next((length for length in lengths if facts.latents >= length), 0)
            if not latents:
                continue
            long_enough = True
            weight = self._weights(place, latents).sum()
            if weight > 0:
                kept.setdefault((latents, facts.grid), []).append((place, weight))
        if not long_enough:
            longest = max(facts.latents for facts in self.facts)
            raise ValueError(f"no clip has {lengths[-1]} latent frames (the longest has {longest}): lower clip_latents")
        if not kept:
            raise ValueError(f"no clip shows anybody in the states {', '.join(self.draw.states)}: choose other states")
        buckets = []
        for (latents, (rows, columns)), clips in sorted(kept.items(), reverse=True):
            places, weights = zip(*clips, strict=True)
            side = (rows, columns) if self.squares is None else [min(self.squares.cells, n) for n in (rows, columns)]
            buckets.append(
                Bucket(
                    latents,
                    (rows, columns),
                    batch=self._bounded(self.batch, latents * rows * columns // 4),
                    squares=self._bounded(self.squares.batch if self.squares else 1, latents * side[0] * side[1] // 4),
                    places=places,
                    weights=torch.stack(weights),
                )  # fmt: skip
            )
        return buckets

    def _bounded(self, batch: int, tokens: int) -> int:
        """Clips of so many tokens in a batch."""
        if not self.tokens:
            return batch
        if tokens > self.tokens:
            raise ValueError(
                f"one window has {tokens} tokens, batch_tokens is {self.tokens}: raise it or shorten windows"
            )
        return min(batch, self.tokens // tokens)

    def _weights(self, place: int, latents: int) -> Tensor:
        """Of each window of a clip."""
        return self.draw.weights(self.facts[place], latents, self.motion[place] if self.motion else None)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine = self.steps if worker is None else self.steps[worker.id :: worker.num_workers]
        for step in mine:
            yield self.make(step)

    def make(self, step: int) -> Batch:
        """The batch of one step."""
        bucket, generator = self.bucket(step), step_generator(self.seed, step, "data")
        squares = self.squares if self.squares is not None and self.squares.at(step // self.together) else None
        batch = bucket.batch if squares is None else bucket.squares
        picked = torch.multinomial(bucket.weights, batch, True, generator=generator).tolist()
        places = [bucket.places[i] for i in picked]
        rows = [self.clips[place] for place in places]
        starts = [self._start(self._weights(place, bucket.latents), generator) for place in places]
        cut = [clip.latents[:, start : start + bucket.latents] for clip, start in zip(rows, starts, strict=True)]
        latents = torch.from_numpy(np.stack(cut)).float()
        noisy = (torch.rand(2, batch, generator=generator) < self.draw.noise_aug_prob).tolist()
        conditions = self.conditions(rows, starts, bucket.latents, noisy, generator)
        corners: Sequence[tuple[int, int] | None] = [None] * batch
        if squares is not None:
            latents, conditions, corners = crop_to_motion(latents, conditions, squares.cells, generator)
        origins = zip(rows, starts, *noisy, corners, strict=True)
        return Batch(
            windows=tuple(
                Window(clip.key, start, bucket.latents, (own, other), at) for clip, start, own, other, at in origins
            ),
            latents=self.model.codec.encode(latents),
            conditions=conditions,
            generator=self.noise(step),
        )

    def noise(self, step: int) -> torch.Generator:
        """Of a step's noise."""
        return step_generator(self.seed, step, "noise")

    def bucket(self, step: int) -> Bucket:
        """Of a step; a bucket of small batches is drawn more often, so that every window keeps its chance."""
        if len(self.buckets) == 1:
            return self.buckets[0]
        generator = step_generator(self.seed, step // self.together, "bucket")
        return self.buckets[int(torch.multinomial(self.chances, 1, generator=generator))]

    def _start(self, weights: Tensor, generator: torch.Generator) -> int:
        """Where a window of a clip begins."""
        from_image = bool(torch.rand(1, generator=generator) < self.draw.image_start_prob) and weights[0] > 0
        return 0 if from_image else int(torch.multinomial(weights, 1, generator=generator))

    def conditions(
        self,
        rows: Sequence[Clip],
        starts: Sequence[int],
        latents: int,
        noisy: Sequence[Sequence[bool]],
        generator: torch.Generator,
    ) -> Conditions:
        """Of windows of `latents` latent frames; `noisy` says for each role whose voices are disturbed."""
        span = latents + self.model.config.context_latents
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
            speak=heard["speak"],
            listen=heard["listen"],
        )

    def _kinds(self, rows: Sequence[Clip], generator: torch.Generator) -> list[str]:
        """Kinds of references for a batch: the global one, and at times more that all its clips have."""
        first = rows[0].kinds[0]
        if self.draw.references == 1 or torch.rand(1, generator=generator) >= self.draw.reference_prob:
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
        """Features of both voices, [2, P + 1 + k, n, width], kept for clips drawn of late."""
        return self.features.get(
            (clip.key, noisy), lambda: self.model.clip_features(self.voices(clip, noisy)).to(torch.bfloat16)
        )


def loaded(batches: ClipBatches, workers: int) -> Iterable[Batch]:
    """The same batches in the same order, made beforehand by so many processes; 0 makes each when it is asked for."""
    if not workers:
        return batches
    return DataLoader(batches, batch_size=None, num_workers=workers, multiprocessing_context="fork")
