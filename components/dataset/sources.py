"""The contract between ingest and curate: sources.jsonl, one line per recording."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lpm_model.config import from_mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One line of raw/sources.jsonl."""

    source_id: str
    """Unique name of the source in the corpus."""
    file: str
    """Path relative to raw/."""
    sha256: str
    """Digest of the file."""
    bytes: int
    """Size of the file in bytes."""
    origin: str
    """performer, folder or s3."""
    licence: str
    """Licence from the sidecar."""
    consent_ref: str
    """Reference to the consent of the people shown."""
    conversation_id: str | None = None
    """Conversation that several cameras recorded."""
    camera: str | None = None
    """a, b or two_shot."""
    person_hint: str | None = None
    """Name of the person shown, if the owner gives it."""


def read_sources(raw: Path) -> list[Source]:
    """Read sources.jsonl; return its sources in order of their ids.

    Raises:
        ValueError: the file is missing, a line is invalid, or an id is used twice or cannot name a folder.
    """
    listing = raw / "sources.jsonl"
    if not listing.is_file():
        raise ValueError(f"{listing} is missing: run `lpm ingest` first")
    sources = []
    for number, line in enumerate(listing.read_text().splitlines(), 1):
        if line.strip():
            try:
                sources.append(from_mapping(Source, json.loads(line), where=""))
            except ValueError as error:
                raise ValueError(f"{listing} line {number}: {error}") from error
    if not sources:
        raise ValueError(f"{listing} lists no source: check what ingest rejected ({raw / 'ingest.json'})")
    names = Counter(source.source_id for source in sources)
    for name, count in names.items():
        if count > 1 or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise ValueError(f"{listing}: source_id {name!r} must be unique and of letters, digits, '.', '_' and '-'")
    return sorted(sources, key=lambda source: source.source_id)
