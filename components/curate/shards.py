"""WebDataset shards with the same bytes for the same clips, and the dataset's digest."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MEMBERS = ("latents", "references", "speak", "listen")
"""Array members of a clip; each becomes `<clip>.<member>.npy`."""


def write_shards(folder: Path, clips: Iterable[tuple[str, Mapping[str, Any]]], clips_per_shard: int) -> dict[str, str]:
    """Write clips in order into `train-%06d.tar`.

    Args:
        folder: dataset/shards.
        clips: (clip id, members): the arrays of MEMBERS and "json", a mapping.
        clips_per_shard: clips in one file.

    Returns:
        Shard name by clip id.
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


def _close(writer: tuple[Any, Any]) -> None:
    writer[0].close()
    writer[1].close()


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
