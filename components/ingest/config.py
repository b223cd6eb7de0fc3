"""Options of the ingest step."""

from dataclasses import dataclass

from components.ingest.formats import DEMUXERS
from components.performer.config import PerformerConfig
from lpm_model.config import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """Where raw video comes from and what is let in."""

    require_consent: bool = setting(True, help="Refuse files without a sidecar that names licence and consent_ref.")
    max_file_mb: int = setting(4096, help="Files larger than this are refused.")
    max_files: int = setting(
        100_000, help="A source with more video files than this is an error: it is more likely a wrong path."
    )
    extensions: tuple[str, ...] = setting(
        tuple(DEMUXERS),
        help="Names of video files end like this, in either case; other video and sound is refused, all else is "
        "counted.",
    )
    also: tuple[str, ...] = setting(
        (), help="Further folders that are collected beside the source, such as real clips beside the performer's."
    )
    tombstones: str = setting(
        ".work/tombstones.json",
        help="What must not come back (`lpm data erase`); a missing file forbids nothing, as does an empty name.",
        affects=False,
    )
    performer: PerformerConfig = setting(
        factory=PerformerConfig, help='The corpus that the source "performer" renders.'
    )
    performer_cache: str = setting(
        ".work/performer",
        help="Folder where rendered corpora are kept and found again; empty = not kept.",
        affects=False,
    )
    truth: str = setting("", help="Folder for the performer's truth (never under raw); empty = not handed out.")

    def __post_init__(self) -> None:
        if self.max_file_mb < 1:
            raise ValueError(f"max_file_mb is {self.max_file_mb}: give at least 1")
        if self.max_files < 1:
            raise ValueError(f"max_files is {self.max_files}: give at least 1")
        unknown = sorted(set(self.extensions) - set(DEMUXERS))
        if unknown or not self.extensions:
            raise ValueError(f"extensions is {self.extensions}: choose from {', '.join(DEMUXERS)}")
