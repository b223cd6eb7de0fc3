"""Tombstones: digests of erased recordings and people, which must not return, and nothing else about them.

`lpm data erase` writes them; ingest and curate reject what they match.
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
"""How a recording was identified as erased."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """One erasure."""

    request: str
    """Digest of the user's request, by which an interrupted erasure is recognised."""
    sources: tuple[str, ...]
    """SHA-256 of the recordings."""
    names: tuple[str, ...]
    """Digests of the people's and recordings' names."""
    items: tuple[str, ...]
    """SHA-256 of everything that was removed."""
    datasets: tuple[str, ...]
    """Dataset versions that contained it."""
    erased_on: str = ""
    """Date (UTC)."""

    def covers(self, sha256: str, *names: str | None) -> Match | None:
        """Return how a recording matches: by its bytes, or by its or its people's names; None if it does not."""
        if sha256 in self.sources:
            return "bytes"
        return "name" if any(not self._digests(name).isdisjoint(self.names) for name in names if name) else None

    def matches_request(self, request: str) -> bool:
        """Return whether a request (kind and name) led to this erasure."""
        return self.request in self._digests(request)

    @staticmethod
    def _digests(name: str) -> set[str]:
        """Return the digests of the normalised name and of the exact spelling, since a tombstone may hold either."""
        return {name_digest(name), _digest(name)}


def normalize_name(name: str) -> str:
    """Normalise a name for comparison: NFKC, case-folded, with single spaces and no surrounding ones."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())


def name_digest(name: str) -> str:
    """Return the digest of a person's or recording's name, equal for all spellings with the same `normalize_name`."""
    return _digest(normalize_name(name))


def _digest(text: str) -> str:
    return hashlib.sha256(f"name\0{text}".encode()).hexdigest()


def today() -> str:
    """Return the current date (UTC)."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


class Tombstones:
    """All tombstones of some files; a missing file has none."""

    def __init__(self, *files: Path) -> None:
        self.all: list[Tombstone] = []
        for file in files:
            if file.is_file():
                self.all += [one for one in _read(file) if one not in self.all]

    def find_match(self, sha256: str, *names: str | None) -> Match | None:
        """Return how any tombstone matches a recording (see `Tombstone.covers`); None if none does."""
        return next((match for one in self.all if (match := one.covers(sha256, *names))), None)

    def write(self, file: Path) -> None:
        """Write all tombstones to one file."""
        write_json(file, {"tombstones": [dataclasses.asdict(one) for one in self.all]})


def add(file: Path, stones: Iterable[Tombstone]) -> None:
    """Add tombstones to a file, without duplicates."""
    known = Tombstones(file)
    known.all += [one for one in stones if one not in known.all]
    known.write(file)


def _read(file: Path) -> list[Tombstone]:
    values: Any = read_json(file)
    if not isinstance(values, dict) or not isinstance(values.get("tombstones"), list):
        raise ValueError(f"{file} is not a tombstone file: restore it, otherwise erased recordings could return")
    return [from_mapping(Tombstone, value) for value in values["tombstones"]]
