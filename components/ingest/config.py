"""Options of the ingest step."""

from dataclasses import dataclass

from components.ingest.formats import DEMUXERS
from components.performer.config import PerformerConfig
from lpm_model.config import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """Where raw video comes from and which files are accepted."""

    require_consent: bool = setting(True, help="Reject files without a sidecar that names licence and consent_ref.")
    allow_unconsented: bool = setting(
        False,
        help="Accept recordings whose consent_ref states that no consent is on file (published clips), for tests; "
        "data.real_clips=true sets it.",
    )
    max_file_mb: int = setting(4096, help="Files larger than this (MB) are rejected.")
    max_files: int = setting(
        100_000, help="A source with more video files than this is an error: it is more likely a wrong path."
    )
    extensions: tuple[str, ...] = setting(
        tuple(DEMUXERS),
        help="File extensions of accepted videos, in any case; other video and audio is rejected, all else is ignored.",
    )
    extra_folders: tuple[str, ...] = setting(
        (), help="Further folders that are ingested together with the source.", is_path=True
    )
    tombstones: str = setting(
        ".work/tombstones.json",
        help="File of erased people and recordings, which are rejected (`lpm data erase`); a missing file or an empty "
        "name rejects nothing.",
        affects=False,
    )
    performer: PerformerConfig = setting(
        factory=PerformerConfig, help='The corpus that the source "performer" renders.'
    )
    performer_cache: str = setting(
        ".work/performer",
        help="Cache folder of rendered corpora; empty = no cache.",
        affects=False,
    )
    ground_truth: str = setting(
        "", help="Folder for the ground truth of the rendered corpus (never under raw); empty = not written."
    )

    def __post_init__(self) -> None:
        if self.max_file_mb < 1:
            raise ValueError(f"max_file_mb is {self.max_file_mb}: give at least 1")
        if self.max_files < 1:
            raise ValueError(f"max_files is {self.max_files}: give at least 1")
        unknown = sorted(set(self.extensions) - set(DEMUXERS))
        if unknown or not self.extensions:
            raise ValueError(f"extensions is {self.extensions}: choose from {', '.join(DEMUXERS)}")
