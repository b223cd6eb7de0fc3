"""Deterministic WebDataset shards: the same clips give the same bytes."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMBERS = ("latents", "references", "speak", "listen")
"""Array members of a clip; each becomes `<clip>.<member>.npy`."""


def write_shards(folder: Path, clips: Iterable[tuple[str, Mapping[str, Any]]], clips_per_shard: int) -> dict[str, str]:
    """Write clips in order to `train-%06d.tar`.

    Args:
        folder: dataset/shards.
        clips: (clip id, members) with the arrays of MEMBERS and the mapping "json".
        clips_per_shard: number of clips per file.

    Returns:
        Shard file name by clip id.
    """
    from webdataset.writer import TarWriter

    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    writer: Any = None
    try:
        for number, (clip_id, members) in enumerate(clips):
            if number % clips_per_shard == 0:
                if writer is not None:
                    _close(writer)
                name = f"train-{number // clips_per_shard:06d}.tar"
                handle = (folder / name).open("wb")
                writer = (TarWriter(handle, mtime=0, encoder=False), handle)
            sample = {f"{member}.npy": _npy(members[member]) for member in MEMBERS}
            facts = json.dumps(members["json"], sort_keys=True).encode()
            writer[0].write({"__key__": clip_id, "json": facts, **sample})
            written[clip_id] = name
    finally:
        if writer is not None:
            _close(writer)
    return written


def read_shard(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (clip id, bytes by member such as "latents.npy") of every clip, in order."""
    clip, members = "", dict[str, bytes]()
    with tarfile.open(path, "r:") as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            name, _, part = member.name.partition(".")
            if name != clip and members:
                yield clip, members
                members = {}
            handle = tar.extractfile(member)
            clip, members[part] = name, handle.read() if handle is not None else b""
    if members:
        yield clip, members


def load_array(data: bytes) -> NDArray[Any]:
    """Decode an array member of a clip."""
    loaded: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return loaded


def copy_shard(given: Path, path: Path, exclude: set[str]) -> None:
    """Copy a shard without some clips; writes no file if no clip is left."""
    from webdataset.writer import TarWriter

    left = ((clip, members) for clip, members in read_shard(given) if clip not in exclude)
    first = next(left, None)
    if first is None:
        return
    with path.open("wb") as handle:
        writer = TarWriter(handle, mtime=0, encoder=False)
        for clip, members in (first, *left):
            writer.write({"__key__": clip, **members})
        writer.close()


def _close(writer: tuple[Any, Any]) -> None:
    writer[0].close()
    writer[1].close()


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
