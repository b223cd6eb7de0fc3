"""Where the second pass puts what a source gives, clip by clip: hours of it would not fit into memory."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dataset.shards import MEMBERS
from lpm_model.files import read_json, write_json


class ClipStore:
    """A folder of finished clips, of those that wait for their references, and of pictures that may become some."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._candidates = folder / "candidates.raw"

    def candidate(self, picture: NDArray[np.uint8]) -> Callable[[], NDArray[np.uint8]]:
        """Put aside a picture; what is given back reads it."""
        with self._candidates.open("ab") as file:
            start = file.tell()
            file.write(picture.tobytes())
        return functools.partial(self._read, start, picture.shape)

    def _read(self, start: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        values = np.fromfile(self._candidates, np.uint8, int(np.prod(shape)), offset=start)
        return values.reshape(shape)

    def drop_candidates(self) -> None:
        """All references have been taken."""
        self._candidates.unlink(missing_ok=True)

    def wait(self, clip_id: str, **arrays: NDArray[Any]) -> None:
        """Put aside what will be asked for again."""
        np.savez(self._folder / f"{clip_id}.waiting.npz", **arrays)  # type: ignore[arg-type]

    def waiting(self, clip_id: str) -> dict[str, NDArray[Any]]:
        """What was put aside; it is gone from the folder afterwards."""
        path = self._folder / f"{clip_id}.waiting.npz"
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        path.unlink()
        return arrays

    def preview(self, clip_id: str, strip: NDArray[np.uint8]) -> None:
        """An RGB strip of a clip's frames, as JPEG."""
        import cv2

        bgr = cv2.cvtColor(strip, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(self._folder / f"{clip_id}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])

    def members(self, clip_id: str, members: dict[str, Any]) -> None:
        """The shard members of a kept clip: arrays and "json", a mapping."""
        np.savez(self._folder / f"{clip_id}.npz", **{name: members[name] for name in MEMBERS})
        write_json(self._folder / f"{clip_id}.json", members["json"])


def read_members(folder: Path, clip_id: str) -> dict[str, Any]:
    """What `ClipStore.members` wrote."""
    with np.load(folder / f"{clip_id}.npz", allow_pickle=False) as data:
        return {**{name: data[name] for name in MEMBERS}, "json": read_json(folder / f"{clip_id}.json")}
