"""What must not come back: digests of forgotten recordings and people, and nothing else about them.

`lpm data forget` writes tombstones; ingest and curate refuse what they name.
"""

import dataclasses
import datetime
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.common import read_json, write_json
from lpm_model.config import from_mapping

TOMBSTONES = "tombstones.json"
"""Name of the file in a dataset folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """One removal."""

    asked: str
    """Digest of what the user asked for, so that an interrupted removal is recognised."""
    sources: tuple[str, ...]
    """SHA-256 of the recordings."""
    names: tuple[str, ...]
    """Digests of the people's and recordings' names."""
    items: tuple[str, ...]
    """SHA-256 of everything that was removed."""
    datasets: tuple[str, ...]
    """Versions of the dataset that held it."""
    forgotten_on: str = ""
    """Date (UTC)."""

    def covers(self, sha256: str, *names: str | None) -> bool:
        """Whether a recording, by its bytes, its name or its people's names, is what was removed."""
        return sha256 in self.sources or any(name_digest(name) in self.names for name in names if name)


def name_digest(name: str) -> str:
    """Digest of a person's or a recording's name."""
    return hashlib.sha256(f"name\0{name}".encode()).hexdigest()


def today() -> str:
    """The date (UTC)."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


class Tombstones:
    """All tombstones of some files; a missing file holds none."""

    def __init__(self, *files: Path) -> None:
        self.all: list[Tombstone] = []
        for file in files:
            if file.is_file():
                self.all += [one for one in _read(file) if one not in self.all]

    def forbids(self, sha256: str, *names: str | None) -> bool:
        """Whether a recording, by its bytes, its name or its people's names, was forgotten."""
        return any(one.covers(sha256, *names) for one in self.all)

    def write(self, file: Path) -> None:
        """Write them all to one file."""
        write_json(file, {"tombstones": [dataclasses.asdict(one) for one in self.all]})


def add(file: Path, stones: Iterable[Tombstone]) -> None:
    """Add tombstones to a file; those that it has stay once."""
    known = Tombstones(file)
    known.all += [one for one in stones if one not in known.all]
    known.write(file)


def _read(file: Path) -> list[Tombstone]:
    values: Any = read_json(file)
    if not isinstance(values, dict) or not isinstance(values.get("tombstones"), list):
        raise ValueError(f"{file} holds no tombstones: restore it, else what was forgotten could come back")
    return [from_mapping(Tombstone, value) for value in values["tombstones"]]
