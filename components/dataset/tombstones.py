"""What must not come back: digests of forgotten recordings and people, and nothing else about them.

`lpm data forget` writes tombstones; ingest and curate refuse what they name.
"""

import dataclasses
import datetime
import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lpm_model.config import from_mapping
from lpm_model.files import read_json, write_json

TOMBSTONES = "tombstones.json"
"""Name of the file in a dataset folder."""

Match = Literal["bytes", "name"]
"""By what a recording is known to be forgotten."""


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

    def covers(self, sha256: str, *names: str | None) -> Match | None:
        """By what a recording (its bytes; its name or its people's names) is what was removed; None = it is not."""
        if sha256 in self.sources:
            return "bytes"
        return "name" if any(not self._digests(name).isdisjoint(self.names) for name in names if name) else None

    def answers(self, request: str) -> bool:
        """Whether it is what a request (kind and name) led to."""
        return self.asked in self._digests(request)

    @staticmethod
    def _digests(name: str) -> set[str]:
        """Of a name, and of this very spelling, as a tombstone may hold just that."""
        return {name_digest(name), _digest(name)}


def plain(name: str) -> str:
    """A name as names are compared: Unicode's NFKC, case-folded, with single spaces and none around it."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())


def name_digest(name: str) -> str:
    """Digest of a person's or a recording's name, the same for every spelling that is `plain`'s."""
    return _digest(plain(name))


def _digest(text: str) -> str:
    return hashlib.sha256(f"name\0{text}".encode()).hexdigest()


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

    def forbids(self, sha256: str, *names: str | None) -> Match | None:
        """By what a recording (its bytes; its name or its people's names) was forgotten; None = it was not."""
        return next((match for one in self.all if (match := one.covers(sha256, *names))), None)

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
