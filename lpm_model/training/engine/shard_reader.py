"""Reads clips from a dataset's WebDataset shards through an index, with an LRU cache of recently used clips.

A shard is a tar file in which the members of a clip are stored one after another
(https://github.com/webdataset/webdataset).
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
"""Members of each clip in a shard."""
CACHE_BYTES = 512 * 10**6
"""Default cache limit of a loader: for clips, and once more for their audio features."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """Index entry of a clip, without its arrays."""

    key: str
    latents: int
    """1 + k latent frames."""
    grid: tuple[int, int]
    """Rows and columns of latent cells."""
    states: NDArray[np.uint8]
    """[4 k] what the person does in each frame (config.STATES)."""
    group: str
    """The person, else the source, else the clip; a group is held out as a whole."""


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
        """Return the index entry of the clip."""
        _, latents, rows, columns = self.latents.shape
        return ClipFacts(self.key, latents, (rows, columns), self.states, self.key)

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(part.nbytes for part in (self.latents, self.references, self.speak, self.listen, self.states))


class Clips(Protocol):
    """Clips in memory, or read on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Clip: ...

    def __iter__(self) -> Iterator[Clip]: ...


def all_facts(clips: Clips) -> Sequence[ClipFacts]:
    """Return the facts of every clip, from the index if there is one."""
    return clips.facts if isinstance(clips, ShardClips) else [clip.facts for clip in clips]


class LruCache(Generic[K, V]):
    """A least-recently-used cache of at most `max_bytes`; a value larger than that is cached alone."""

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self.max_bytes, self.size = max_bytes, size
        self.held_bytes = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key, making and caching it on a miss."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        self.held_bytes += self.size(value)
        while self._values and self.held_bytes > self.max_bytes:
            self.held_bytes -= self.size(self._values.popitem(last=False)[1])
        self._values[key] = value
        return value


@dataclass(frozen=True, slots=True)
class _Entry:
    """The position of a clip in a shard."""

    facts: ClipFacts
    kinds: tuple[str, ...]
    caption: str
    shard: Path
    members: tuple[tuple[int, int], ...]
    """First byte and length of the arrays, in the order of MEMBERS."""


class ShardClips:
    """Clips of a dataset in key order: opening reads the headers and facts of every shard, a clip is one read."""

    def __init__(self, entries: Sequence[_Entry], cache_bytes: int) -> None:
        self._entries = entries
        self.facts = [entry.facts for entry in entries]
        self.cache: LruCache[str, Clip] = LruCache(cache_bytes, lambda clip: clip.nbytes)
        self._cache_bytes = cache_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, place: int, /) -> Clip:
        entry = self._entries[place]
        return self.cache.get(entry.facts.key, lambda: _read(entry))

    def __iter__(self) -> Iterator[Clip]:
        return (self[place] for place in range(len(self)))

    def find(self, key: str) -> Clip:
        """Return the clip with this key."""
        return next(self[place] for place, facts in enumerate(self.facts) if facts.key == key)

    def split(self, fraction: float) -> tuple["ShardClips", "ShardClips"]:
        """Split into training clips and held-out clips by a hash of the person (of the source, if no person is known).

        Args:
            fraction: of the people to hold out, rounded up; 0 holds nobody out.

        Raises:
            ValueError: nobody would be left for training.
        """
        groups = sorted({facts.group for facts in self.facts}, key=lambda group: (zlib.crc32(group.encode()), group))
        held_out = set(groups[: math.ceil(fraction * len(groups))])
        if len(held_out) == len(groups):
            raise ValueError(
                f"held_out_fraction {fraction} of {len(groups)} people leaves nobody to train on: lower it, or set it "
                "and validation.every_steps to 0"
            )
        parts: tuple[list[_Entry], list[_Entry]] = [], []
        for entry in self._entries:
            parts[entry.facts.group in held_out].append(entry)
        return ShardClips(parts[0], self._cache_bytes), ShardClips(parts[1], self._cache_bytes)


def read_clips(dataset: Path, cache_bytes: int = CACHE_BYTES) -> ShardClips:
    """Open the clips of a dataset folder.

    Args:
        dataset: folder that curate wrote.
        cache_bytes: limit of the clips that stay in memory.

    Raises:
        ValueError: no shards, or a shard that is missing or truncated, with its name.
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
    return ShardClips(sorted(entries, key=lambda entry: entry.facts.key), cache_bytes)


def _check_end(shard: Path) -> None:
    """Raise if the two empty blocks at the end are missing, the only sign of truncation between two clips."""
    with shard.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 1024))
        if file.read() != bytes(1024):
            raise ValueError(f"{shard} is truncated: copy it again or run `lpm curate` again")


def _index(shard: Path) -> list[_Entry]:
    """Index every clip of a shard."""
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
    """Return the shape of the array whose .npy starts at a byte."""
    file.seek(start)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape: tuple[int, ...] = header[np.lib.format.read_magic(file)](file)[0]
    return shape


def _read(entry: _Entry) -> Clip:
    """Read the arrays of a clip at once."""
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
    """Decode [[state, frames], ...] to [frames] states, without the image's frame; idle if there are none."""
    if runs is None:
        return np.full(frames, STATES["idle"], np.uint8)
    track = np.concatenate([np.full(length, state, np.uint8) for state, length in runs])
    return track[len(track) - frames :]
