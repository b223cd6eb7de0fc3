"""The report of ingest: accepted recordings, rejected files with the reason, ignored files."""

import logging
from dataclasses import dataclass, field
from typing import Literal

log = logging.getLogger(__name__)

Origin = Literal["performer", "folder", "s3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A file that was rejected."""

    file: str
    """Path in the source."""
    reason: str
    """Reason and remedy."""
    same_as: str = ""
    """source_id of the accepted recording with the same content; empty = rejected for another reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """Result of the ingest step; written as ingest.json."""

    source: str
    """Source as given by the user."""
    origin: Origin
    """Kind of source."""
    sources: int
    """Number of accepted recordings."""
    bytes: int
    """Their total size."""
    seconds: float
    """Their total duration (s)."""
    licences: dict[str, int]
    """Number of recordings per licence."""
    rejected: tuple[Rejection, ...]
    """Rejected files, ordered by path."""
    ignored: int
    """Files whose extension is neither video, audio nor YAML; they are not opened."""


@dataclass(slots=True)
class SkipLog:
    """Collects the files that are skipped."""

    rejected: list[Rejection] = field(default_factory=list)
    """Files that are named in the report."""
    ignored: int = 0
    """Files that are only counted."""

    def reject(self, file: str, reason: str, same_as: str = "") -> None:
        """Log and record a rejected file."""
        log.warning("skipped %s: %s", file, reason)
        self.rejected.append(Rejection(file=file, reason=reason, same_as=same_as))
