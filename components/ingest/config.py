"""Options of the ingest step."""

from dataclasses import dataclass, field

from components.ingest.formats import DEMUXERS
from components.performer.config import PerformerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """Where raw video comes from and what is let in."""

    require_consent: bool = True
    """Refuse files without a sidecar that names licence and consent_ref."""
    max_file_mb: int = 4096
    """Files larger than this are refused."""
    max_files: int = 100_000
    """A source with more video files than this is an error: it is more likely a wrong path."""
    extensions: tuple[str, ...] = tuple(DEMUXERS)
    """Names of video files end like this, in either case; other video and sound is refused, all else is counted."""
    also: tuple[str, ...] = ()
    """Further folders that are collected beside the source, such as real clips beside the performer's."""
    tombstones: str = ".work/tombstones.json"
    """What must not come back (`lpm data forget`); a missing file forbids nothing, as does an empty name."""
    performer: PerformerConfig = field(default_factory=PerformerConfig)
    """The corpus that the source "performer" renders."""
    performer_cache: str = ".work/performer"
    """Folder where rendered corpora are kept and found again; empty = not kept."""
    truth: str = ""
    """Folder for the performer's truth (never under raw); empty = not handed out."""

    def __post_init__(self) -> None:
        if self.max_file_mb < 1:
            raise ValueError(f"max_file_mb is {self.max_file_mb}: give at least 1")
        if self.max_files < 1:
            raise ValueError(f"max_files is {self.max_files}: give at least 1")
        unknown = sorted(set(self.extensions) - set(DEMUXERS))
        if unknown or not self.extensions:
            raise ValueError(f"extensions is {self.extensions}: choose from {', '.join(DEMUXERS)}")
