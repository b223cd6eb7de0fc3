"""Working files of one source's clips: hours of video would not fit into memory."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dataset.shards import MEMBERS
from lpm_model.files import read_json, write_json


class ClipStore:
    """A folder of finished clips, of encoded clips that still need references, and of candidates of references."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._candidates = folder / "candidates.raw"

    def add_candidate(self, image: NDArray[np.uint8]) -> Callable[[], NDArray[np.uint8]]:
        """Write an image; return a function that reads it."""
        with self._candidates.open("ab") as file:
            start = file.tell()
            file.write(image.tobytes())
        return functools.partial(self._read, start, image.shape)

    def _read(self, start: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        values = np.fromfile(self._candidates, np.uint8, int(np.prod(shape)), offset=start)
        return values.reshape(shape)

    def drop_candidates(self) -> None:
        """Delete the candidates, once all references are chosen."""
        self._candidates.unlink(missing_ok=True)

    def add_pending(self, clip_id: str, **arrays: NDArray[Any]) -> None:
        """Write the arrays of a clip that still needs references."""
        np.savez(self._folder / f"{clip_id}.pending.npz", **arrays)  # type: ignore[arg-type]

    def take_pending(self, clip_id: str) -> dict[str, NDArray[Any]]:
        """Read the arrays of a clip that still needs references, and delete their file."""
        path = self._folder / f"{clip_id}.pending.npz"
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        path.unlink()
        return arrays

    def add_preview(self, clip_id: str, strip: NDArray[np.uint8]) -> None:
        """Write a strip of a clip's frames, RGB uint8 [H, W, 3], as JPEG."""
        import cv2

        bgr = cv2.cvtColor(strip, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(self._folder / f"{clip_id}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])

    def add_members(self, clip_id: str, members: dict[str, Any]) -> None:
        """Write the shard members of a kept clip: arrays and "json", a mapping."""
        np.savez(self._folder / f"{clip_id}.npz", **{name: members[name] for name in MEMBERS})
        write_json(self._folder / f"{clip_id}.json", members["json"])


def read_members(folder: Path, clip_id: str) -> dict[str, Any]:
    """Read the shard members that `ClipStore.add_members` wrote."""
    with np.load(folder / f"{clip_id}.npz", allow_pickle=False) as data:
        return {**{name: data[name] for name in MEMBERS}, "json": read_json(folder / f"{clip_id}.json")}
