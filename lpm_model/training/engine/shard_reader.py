"""Clips in a dataset's WebDataset shards: an index of all of them, read one by one, the last ones kept up to a bound.

A shard is a tar file; the members of a clip stand in it one behind the other (https://github.com/webdataset/webdataset).
"""

import io
import json
import math
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import FRAMES_PER_LATENT, STATES

MEMBERS = ("latents.npy", "references.npy", "speak.npy", "listen.npy", "json")
"""What a shard holds of each clip."""
KEPT_BYTES = 512 * 10**6
"""Default bound of what a loader keeps: of clips, and once more of their audio features."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What the index knows of a clip without its arrays."""

    key: str
    latents: int
    """1 + k latent frames."""
    grid: tuple[int, int]
    """Rows and columns of latent cells."""
    states: NDArray[np.uint8]
    """[4 k] what the person does in each frame (config.STATES)."""
    group: str
    """The person, else the source, else the clip: what is held out is held out with all of its group."""


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

    @property
    def facts(self) -> ClipFacts:
        """What an index would know of it."""
        _, latents, rows, columns = self.latents.shape
        return ClipFacts(self.key, latents, (rows, columns), self.states, self.key)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(part.nbytes for part in (self.latents, self.references, self.speak, self.listen, self.states))


class Clips(Protocol):
    """Clips that are at hand, or that are read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Clip: ...

    def __iter__(self) -> Iterator[Clip]: ...


def facts_of(clips: Clips) -> Sequence[ClipFacts]:
    """Of every clip; nothing is read where there is an index."""
    return clips.facts if isinstance(clips, ShardClips) else [clip.facts for clip in clips]


class Recent(Generic[K, V]):
    """The values that were used last, up to a bound in bytes; one that is larger than the bound is kept alone."""

    def __init__(self, bound: int, size: Callable[[V], int]) -> None:
        self.bound, self.size = bound, size
        self.held = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not at hand."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        self.held += self.size(value)
        while self._values and self.held > self.bound:
            self.held -= self.size(self._values.popitem(last=False)[1])
        self._values[key] = value
        return value


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a clip lies."""

    facts: ClipFacts
    kinds: tuple[str, ...]
    caption: str
    shard: Path
    members: tuple[tuple[int, int], ...]
    """First byte and length of the arrays, in the order of MEMBERS."""


class ShardClips:
    """Clips of a dataset in key order. Opening reads each shard's headers and facts once, a clip is one read."""

    def __init__(self, entries: Sequence[_Entry], kept_bytes: int) -> None:
        self._entries = entries
        self.facts = [entry.facts for entry in entries]
        self.recent: Recent[str, Clip] = Recent(kept_bytes, lambda clip: clip.nbytes)
        self._kept_bytes = kept_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, place: int, /) -> Clip:
        entry = self._entries[place]
        return self.recent.get(entry.facts.key, lambda: _read(entry))

    def __iter__(self) -> Iterator[Clip]:
        return (self[place] for place in range(len(self)))

    def find(self, key: str) -> Clip:
        """The clip of that name."""
        return next(self[place] for place, facts in enumerate(self.facts) if facts.key == key)

    def split(self, share: float) -> tuple["ShardClips", "ShardClips"]:
        """Clips to learn from, and clips held out: whole people (sources, where no person is known), by their hash.

        Args:
            share: of the people that is held out, rounded up; 0 holds nobody out.

        Raises:
            ValueError: nobody would be left to learn from.
        """
        groups = sorted({facts.group for facts in self.facts}, key=lambda group: (zlib.crc32(group.encode()), group))
        kept_out = set(groups[: math.ceil(share * len(groups))])
        if len(kept_out) == len(groups):
            raise ValueError(
                f"held_out_fraction {share} of {len(groups)} people leaves nobody to learn from: lower it, or set it and "
                "validation.every_steps to 0"
            )
        parts: tuple[list[_Entry], list[_Entry]] = [], []
        for entry in self._entries:
            parts[entry.facts.group in kept_out].append(entry)
        return ShardClips(parts[0], self._kept_bytes), ShardClips(parts[1], self._kept_bytes)


def read_clips(dataset: Path, kept_bytes: int = KEPT_BYTES) -> ShardClips:
    """The clips of a dataset folder.

    Args:
        dataset: folder that curate wrote.
        kept_bytes: bound of the clips that stay in memory.

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
    entries = [entry for shard in shards for entry in _index(shard)]
    if not entries:
        raise ValueError(f"{dataset} holds no clips: see its curation report")
    return ShardClips(sorted(entries, key=lambda entry: entry.facts.key), kept_bytes)


def _check_end(shard: Path) -> None:
    """A tar file ends in two empty blocks; one that is cut off between two clips shows in nothing else."""
    with shard.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 1024))
        if file.read() != bytes(1024):
            raise ValueError(f"{shard} is cut off: copy it again or run `lpm curate` again")


def _index(shard: Path) -> list[_Entry]:
    """Every clip of a shard."""
    _check_end(shard)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                folder, slash, name = member.name.rpartition("/")
                stem, _, part = name.partition(".")
                found.setdefault(folder + slash + stem, {})[part] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{shard} cannot be read ({error}): run `lpm curate` again") from error
    with shard.open("rb") as file:
        return [_entry(file, shard, key, parts) for key, parts in found.items()]


def _entry(file: io.BufferedReader, shard: Path, key: str, parts: dict[str, tuple[int, int]]) -> _Entry:
    missing = [part for part in MEMBERS if part not in parts]
    if missing:
        raise ValueError(f"{shard}: clip {key} lacks {', '.join(missing)}; run `lpm curate` again")
    start, length = parts["json"]
    file.seek(start)
    try:
        meta = json.loads(file.read(length))
        _, latents, rows, columns = _shape(file, parts["latents.npy"][0])
    except ValueError as error:
        raise ValueError(f"{shard}: clip {key} cannot be read ({error}): run `lpm curate` again") from error
    group = meta.get("person_id") or meta.get("source_id") or key
    states = _state_track(meta.get("states"), (latents - 1) * FRAMES_PER_LATENT)
    return _Entry(
        facts=ClipFacts(key, latents, (rows, columns), states, str(group)),
        kinds=tuple(meta["reference_kinds"]), caption=meta["caption"], shard=shard,
        members=tuple(parts[name] for name in MEMBERS[:-1]),
    )  # fmt: skip


def _shape(file: io.BufferedReader, start: int) -> tuple[int, ...]:
    """Of the array whose .npy begins at a byte."""
    file.seek(start)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape: tuple[int, ...] = header[np.lib.format.read_magic(file)](file)[0]
    return shape


def _read(entry: _Entry) -> Clip:
    """The arrays of a clip, in one read."""
    first = min(start for start, _ in entry.members)
    with entry.shard.open("rb") as file:
        file.seek(first)
        data = memoryview(file.read(max(start + length for start, length in entry.members) - first))

    def array(start: int, length: int) -> NDArray[Any]:
        loaded: NDArray[Any] = np.load(io.BytesIO(data[start - first : start - first + length]), allow_pickle=False)
        return loaded

    try:
        latents, references, speak, listen = (array(*member) for member in entry.members)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{entry.shard}: clip {entry.facts.key} cannot be read ({error}): run `lpm curate` again"
        ) from error
    return Clip(
        key=entry.facts.key, latents=latents, references=references, kinds=entry.kinds, speak=speak, listen=listen,
        caption=entry.caption, states=entry.facts.states,
    )  # fmt: skip


def _state_track(runs: Sequence[Sequence[int]] | None, frames: int) -> NDArray[np.uint8]:
    """[frames] from its run-length code ([[state, frames], ...], the image's frame left out); idle where unknown."""
    if runs is None:
        return np.full(frames, STATES["idle"], np.uint8)
    track = np.concatenate([np.full(length, state, np.uint8) for state, length in runs])
    return track[len(track) - frames :]
