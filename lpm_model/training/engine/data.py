"""Training batches from dataset shards, a pure function of (seed, step), so that a resumed run sees the same data.

Processes and loader workers divide the steps among them; see `ClipBatches`.

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
from lpm_model.training.engine.noise_augmentation import add_noise
from lpm_model.training.engine.shard_reader import CACHE_BYTES, Clip, ClipFacts, Clips, LruCache, all_facts


@dataclass(frozen=True, slots=True)
class Window:
    """The source of one row of a batch."""

    key: str
    """Clip."""
    start: int
    """First latent frame of the window in the clip."""
    latents: int
    """Latent frames of the window."""
    noisy: tuple[bool, bool]
    """Whether noise augmentation is applied to the person's own audio and to the partner's audio."""
    corner: tuple[int, int] | None = None
    """Row and column, in latent cells, of the top left of a random crop; None for full frames."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one training step."""

    windows: tuple[Window, ...]
    latents: Tensor
    """[B, channels, F, h, w], residual to latent 0 (lpm_model.latent_codec)."""
    conditions: Conditions
    generator: torch.Generator
    """Draws the noise of this step."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The clip of each row."""
        return tuple(window.key for window in self.windows)

    def to(self, device: torch.device, **_: Any) -> "Batch":
        """Return the batch on another device."""
        moved = self.conditions.map(lambda value: value.to(device))
        return replace(self, latents=self.latents.to(device), conditions=moved)


def read_dataset(dataset: Path, autoencoder_digest: str) -> dict[str, Any]:
    """Read dataset.json and check that the dataset was encoded with this autoencoder.

    Raises:
        ValueError: no dataset, or one encoded with another autoencoder.
    """
    path = dataset / "dataset.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: run `lpm curate` first")
    about: dict[str, Any] = json.loads(path.read_text())
    if about["autoencoder_digest"] != autoencoder_digest:
        raise ValueError(f"{dataset} was encoded with another autoencoder: run `lpm curate` again with this one")
    return about


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Return a generator that depends only on its arguments; `purpose` keeps the draws of one step apart."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{step}/{purpose}".encode()))


def crop_to_motion(
    latents: Tensor, conditions: Conditions, side: int, generator: torch.Generator
) -> tuple[Tensor, Conditions, list[tuple[int, int]]]:
    """Crop a square from every clip and its references, more likely where the clip moves fast: mostly the mouth.

    Positions in the model are relative (RoPE), so training on crops transfers to full frames, at a fraction of the
    tokens.

    Args:
        latents: [B, channels, F, h, w].
        conditions: conditions, whose references [B, R, channels, h, w] are cropped at the same place.
        side: side of the square in latent cells, even; clamped to the grid.
        generator: draws the positions.

    Returns:
        Cropped latents [B, channels, F, side, side], conditions, and the row and column of each crop in latent cells.
    """
    side = min(side, *latents.shape[3:])
    speed = latents.diff(dim=2).square().mean(dim=(1, 2))
    boxes = functional.avg_pool2d(speed[:, None], side, stride=2)[:, 0]
    weights = boxes.flatten(1).square() + 1e-12
    picked = torch.multinomial(weights, 1, generator=generator)[:, 0].tolist()
    corners = [(2 * (at // boxes.shape[2]), 2 * (at % boxes.shape[2])) for at in picked]

    def cut(value: Tensor) -> Tensor:
        rows = zip(value, corners, strict=True)
        return torch.stack([row[..., top : top + side, left : left + side] for row, (top, left) in rows])

    assert conditions.references is not None
    return cut(latents), replace(conditions, references=cut(conditions.references)), corners


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomCrops:
    """Schedule of training on random latent crops instead of full frames (see `crop_to_motion`)."""

    steps: int
    """Only steps before this one train on crops."""
    full_frame_every: int
    """Every n-th of these steps trains on full frames."""
    batch: int
    """Clips in a batch of crops."""
    size: int
    """Side of a crop in latent cells, even."""

    def is_crop_step(self, step: int) -> bool:
        """Return whether a step trains on crops."""
        return step < self.steps and (step + 1) % self.full_frame_every != 0


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSampling:
    """How windows are sampled, and which of their conditions the model receives."""

    voices: tuple[str, ...] = ("speak", "listen")
    """Audio branches that the model receives; the other one gets the learned null."""
    states: tuple[str, ...] = tuple(STATES)
    """A window is sampled in proportion to its fraction of frames in these states (config.STATES)."""
    expressive: float = 0.0
    """Exponent of the window's motion in its sampling weight."""
    references: int = 1
    """Maximum number of references, the global one first."""
    reference_prob: float = 0.0
    """Probability of more than the global reference."""
    image_start_prob: float = 0.5
    """Probability that a window starts at the clip's image."""
    noise_aug_prob: float = 0.0
    """Probability of noise augmentation, for each voice."""

    def weights(self, facts: ClipFacts, latents: int, motion: NDArray[np.float32] | None = None) -> Tensor:
        """Return the sampling weight of each window of a clip.

        Args:
            facts: facts of the clip.
            latents: latent frames of a window.
            motion: [k] see `latent_motion`; only needed if `expressive` is above 0.

        Returns:
            [windows] fraction of frames in the chosen states, times motion to the power of `expressive`.
        """
        in_states = np.isin(facts.states, [STATES[name] for name in self.states]).astype(np.float64)
        total = np.concatenate([[0.0], in_states.cumsum()])
        span = (latents - 1) * FRAMES_PER_LATENT
        fraction = (total[span:] - total[:-span])[::FRAMES_PER_LATENT] / span
        if self.expressive and motion is not None:
            moved = np.concatenate([[0.0], motion.cumsum()])
            fraction = fraction * ((moved[latents - 1 :] - moved[: 1 - latents]) / (latents - 1)) ** self.expressive
        return torch.from_numpy(fraction).float()


def latent_motion(clip: Clip) -> NDArray[np.float32]:
    """Return the mean squared change between neighbouring latent frames of a clip, [k]."""
    speed: NDArray[np.float32] = np.square(np.diff(clip.latents.astype(np.float32), axis=1)).mean(axis=(0, 2, 3))
    return speed


@dataclass(frozen=True, slots=True)
class Bucket:
    """Clips whose windows form batches of one shape."""

    latents: int
    """Latent frames of a window."""
    grid: tuple[int, int]
    """Rows and columns of latent cells."""
    batch: int
    """Clips in a batch of full frames."""
    crop_batch: int
    """Clips in a batch of crops."""
    clip_indices: tuple[int, ...]
    """Indices of its clips in the dataset."""
    weights: Tensor
    """[clips] sampling weight of each."""


class ClipBatches(IterableDataset[Batch]):
    """Random windows of clips, in batches of one window length and one grid.

    A window has `latents` latent frames or, in a shorter clip, the longest of `shorter` that fits. A batch comes from
    one bucket of clips of the same window length and grid; all batches of an optimizer step come from the same bucket.

    Args:
        clips: the dataset.
        model: provides the encoders of the conditions.
        latents: latent frames of a window.
        batch: maximum number of clips in a batch.
        steps: steps to iterate over; the remaining ones in a resumed run.
        seed: seed of all random draws.
        crops: steps that train on random crops; None for none.
        sampling: how windows are sampled.
        shorter: other window lengths, for clips that are too short.
        tokens: maximum number of video tokens in a batch; 0 for no limit.
        batches_per_step: batches of one optimizer step, all of one shape; several processes may divide them.
        cache_bytes: limit of the audio features that stay in memory.
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
        crops: RandomCrops | None = None,
        sampling: WindowSampling | None = None,
        shorter: Sequence[int] = (),
        tokens: int = 0,
        batches_per_step: int = 1,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.sampling, self.crops = sampling or WindowSampling(), crops
        self.clips, self.model, self.batch, self.steps, self.seed = clips, model, batch, steps, seed
        self.tokens, self.batches_per_step = tokens, batches_per_step
        self.facts = all_facts(clips)
        self.motion = [latent_motion(clip) for clip in clips] if self.sampling.expressive else None
        self.buckets = self._fill(sorted({latents, *shorter}, reverse=True))
        weights = [float(bucket.weights.sum()) / bucket.batch for bucket in self.buckets]
        self.bucket_weights = torch.tensor(weights)
        self.features: LruCache[tuple[str, bool], Tensor] = LruCache(cache_bytes, lambda value: value.nbytes)

    def _fill(self, lengths: Sequence[int]) -> list[Bucket]:
        """Return all non-empty buckets, longest windows first."""
        found: dict[tuple[int, tuple[int, int]], list[tuple[int, Tensor]]] = {}
        long_enough = False
        for place, facts in enumerate(self.facts):
            latents = next((length for length in lengths if facts.latents >= length), 0)
            if not latents:
                continue
            long_enough = True
            weight = self._weights(place, latents).sum()
            if weight > 0:
                found.setdefault((latents, facts.grid), []).append((place, weight))
        if not long_enough:
            longest = max(facts.latents for facts in self.facts)
            raise ValueError(f"no clip has {lengths[-1]} latent frames (the longest has {longest}): lower clip_latents")
        if not found:
            raise ValueError(
                f"no clip shows anybody in the states {', '.join(self.sampling.states)}: choose other states"
            )
        buckets = []
        for (latents, (rows, columns)), clips in sorted(found.items(), reverse=True):
            places, weights = zip(*clips, strict=True)
            side = (rows, columns) if self.crops is None else [min(self.crops.size, n) for n in (rows, columns)]
            buckets.append(
                Bucket(
                    latents,
                    (rows, columns),
                    batch=self._clips_in_batch(self.batch, latents * rows * columns // 4),
                    crop_batch=self._clips_in_batch(
                        self.crops.batch if self.crops else 1, latents * side[0] * side[1] // 4
                    ),
                    clip_indices=places,
                    weights=torch.stack(weights),
                )  # fmt: skip
            )
        return buckets

    def _clips_in_batch(self, batch: int, tokens: int) -> int:
        """Return the number of clips, of `tokens` video tokens each, that fit in a batch."""
        if not self.tokens:
            return batch
        if tokens > self.tokens:
            raise ValueError(
                f"one window has {tokens} tokens, batch_tokens is {self.tokens}: raise it or shorten windows"
            )
        return min(batch, self.tokens // tokens)

    def _weights(self, place: int, latents: int) -> Tensor:
        """[windows] sampling weights of a clip."""
        return self.sampling.weights(self.facts[place], latents, self.motion[place] if self.motion else None)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine = self.steps if worker is None else self.steps[worker.id :: worker.num_workers]
        for step in mine:
            yield self.make(step)

    def make(self, step: int) -> Batch:
        """Return the batch of one step."""
        bucket, generator = self.bucket(step), step_generator(self.seed, step, "data")
        crops = (
            self.crops if self.crops is not None and self.crops.is_crop_step(step // self.batches_per_step) else None
        )
        batch = bucket.batch if crops is None else bucket.crop_batch
        picked = torch.multinomial(bucket.weights, batch, True, generator=generator).tolist()
        places = [bucket.clip_indices[i] for i in picked]
        rows = [self.clips[place] for place in places]
        starts = [self._start(self._weights(place, bucket.latents), generator) for place in places]
        cut = [clip.latents[:, start : start + bucket.latents] for clip, start in zip(rows, starts, strict=True)]
        latents = torch.from_numpy(np.stack(cut)).float()
        noisy = (torch.rand(2, batch, generator=generator) < self.sampling.noise_aug_prob).tolist()
        conditions = self.conditions(rows, starts, bucket.latents, noisy, generator)
        corners: Sequence[tuple[int, int] | None] = [None] * batch
        if crops is not None:
            latents, conditions, corners = crop_to_motion(latents, conditions, crops.size, generator)
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
        """Return the generator of a step's noise."""
        return step_generator(self.seed, step, "noise")

    def bucket(self, step: int) -> Bucket:
        """Return the bucket of a step; small batches are drawn more often, to keep all windows equally likely."""
        if len(self.buckets) == 1:
            return self.buckets[0]
        generator = step_generator(self.seed, step // self.batches_per_step, "bucket")
        return self.buckets[int(torch.multinomial(self.bucket_weights, 1, generator=generator))]

    def _start(self, weights: Tensor, generator: torch.Generator) -> int:
        """First latent frame of a random window of a clip."""
        from_image = bool(torch.rand(1, generator=generator) < self.sampling.image_start_prob) and weights[0] > 0
        return 0 if from_image else int(torch.multinomial(weights, 1, generator=generator))

    def conditions(
        self,
        rows: Sequence[Clip],
        starts: Sequence[int],
        latents: int,
        noisy: Sequence[Sequence[bool]],
        generator: torch.Generator,
    ) -> Conditions:
        """Return the conditions of some windows.

        Args:
            rows: clip of each window.
            starts: first latent frame of each.
            latents: latent frames of each.
            noisy: [2][B] whether noise augmentation is applied to the own audio and to the partner's.
            generator: draws the references.
        """
        span = latents + self.model.config.context_latents
        voices: dict[str, Tensor | None] = {
            name: torch.stack(
                [
                    self._features(clip, augment)[role, start : start + span]
                    for clip, start, augment in zip(rows, starts, noisy[role], strict=True)
                ]
            ).float()
            if name in self.sampling.voices
            else None
            for role, name in enumerate(("speak", "listen"))
        }
        kinds = self._kinds(rows, generator)
        references = [clip.references[[clip.kinds.index(kind) for kind in kinds]] for clip in rows]
        return Conditions(
            text=self.model.text([clip.caption for clip in rows]),
            references=torch.from_numpy(np.stack(references)).float(),
            reference_positions=reference_positions(kinds),
            speak=voices["speak"],
            listen=voices["listen"],
        )

    def _kinds(self, rows: Sequence[Clip], generator: torch.Generator) -> list[str]:
        """Return the kinds of references of a batch: the global one, and at random others that all its clips have."""
        first = rows[0].kinds[0]
        if self.sampling.references == 1 or torch.rand(1, generator=generator) >= self.sampling.reference_prob:
            return [first]
        shared = [kind for kind in rows[0].kinds[1:] if all(kind in clip.kinds for clip in rows)]
        order = torch.randperm(len(shared), generator=generator)[: self.sampling.references - 1].tolist()
        return [first, *(shared[i] for i in sorted(order))]

    def voices(self, clip: Clip, noisy: bool) -> Tensor:
        """Return both voices of a clip, [2, 4000 k] in [-1, 1], with noise augmentation if `noisy`."""
        pair = torch.from_numpy(np.stack([clip.speak, clip.listen])).float() / 32768
        expected = (clip.latents.shape[1] - 1) * SAMPLES_PER_LATENT
        if pair.shape[1] != expected:
            raise ValueError(f"clip {clip.key} has {pair.shape[1]} samples for {expected}: run `lpm curate` again")
        if not noisy:
            return pair
        generator = step_generator(self.seed, zlib.crc32(clip.key.encode()), "disturbance")
        return torch.stack([add_noise(voice, generator) for voice in pair])

    def _features(self, clip: Clip, noisy: bool) -> Tensor:
        """Audio features of both voices, [2, P + 1 + k, n, width], cached for recently used clips."""
        return self.features.get(
            (clip.key, noisy), lambda: self.model.clip_features(self.voices(clip, noisy)).to(torch.bfloat16)
        )


def prefetched(batches: ClipBatches, workers: int) -> Iterable[Batch]:
    """Return the same batches in the same order, prefetched by worker processes; 0 workers compute each on demand."""
    if not workers:
        return batches
    return DataLoader(batches, batch_size=None, num_workers=workers, multiprocessing_context="fork")
