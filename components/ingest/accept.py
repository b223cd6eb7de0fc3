"""Decides file by file what ingest accepts: type, size, consent, decodability, tombstones."""

import functools
import os
from pathlib import Path
from typing import Final

from components.dataset.names import source_id_of
from components.dataset.sources import Source
from components.dataset.tombstones import Tombstones
from components.ingest.config import IngestConfig
from components.ingest.formats import rejection_reason
from components.ingest.report import Origin, SkipLog
from components.ingest.sidecar import Sidecar, read_sidecar
from components.ingest.sniff import open_video
from components.runtime.guarded_worker import Budget, Worker, first_done
from lpm_model.consent import has_consent
from lpm_model.digests import file_digest
from lpm_model.files import link_file

_MB: Final = 1 << 20
_PROBE_S: Final = 8.0
"""Time limit for opening one file (s)."""
_PROBE_MB: Final = 1536.0
"""Memory limit for it (MiB)."""


class Rejected(Exception):
    """A file is not accepted; the message is the reason."""

    same_as = ""
    """source_id of the accepted recording with the same content."""


class Duplicate(Rejected):
    """A file with the same content has been accepted."""

    def __init__(self, source_id: str) -> None:
        super().__init__(f"same content as {source_id}")
        self.same_as = source_id


def find_videos(root: Path, config: IngestConfig, skips: SkipLog) -> list[Path]:
    """List the video files below a folder in a fixed order; hidden files and linked folders are skipped silently.

    Raises:
        ValueError: the folder holds more than `max_files` videos.
    """
    found = []
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(folder) / name for name in sorted(names) if not name.startswith(".")):
            if file.suffix.lower() in config.extensions:
                found.append(file)
            elif reason := rejection_reason(file.name, config.extensions):
                skips.reject(file.relative_to(root).as_posix(), reason)
            else:
                skips.ignored += file.suffix.lower() != ".yaml"
        if len(found) > config.max_files:
            raise ValueError(f"{root} holds more than {config.max_files} videos: raise max_files if this is intended")
    return found


def accept(file: Path, root: Path, media: Path, origin: Origin, config: IngestConfig) -> tuple[Source, float]:
    """Check one file and link it into the media folder.

    Returns:
        Its line of sources.jsonl and its duration (s).

    Raises:
        Rejected: the file is not accepted.
    """
    real, size = _regular_file(file, root, config)
    sidecar = _consent(file, root, config)
    duration_s = _probe(real)
    digest = file_digest(real)
    if match := Tombstones(Path(config.tombstones)).find_match(digest, sidecar.person_hint):
        key = {"bytes": "bytes", "name": "person_hint"}[match]
        raise Rejected(f"erased on request (lpm data erase), matched by its {key}: it must not be ingested again")
    source_id = source_id_of(file.relative_to(root).as_posix(), digest)
    target = media / f"{source_id}{file.suffix.lower()}"
    link_file(real, target)
    source = Source(
        source_id=source_id,
        file=f"media/{target.name}",
        sha256=digest,
        bytes=size,
        origin=origin,
        licence=sidecar.licence,
        consent_ref=sidecar.consent_ref,
        conversation_id=sidecar.conversation_id,
        camera=sidecar.camera,
        person_hint=sidecar.person_hint,
    )
    return source, duration_s


def stop_prober() -> None:
    """Stop the process that opens files."""
    _prober().stop()


def _regular_file(file: Path, root: Path, config: IngestConfig) -> tuple[Path, int]:
    """Resolve a file inside the source folder and return it with its size in bytes."""
    real = file.resolve()
    if not real.is_relative_to(root.resolve()):
        raise Rejected("a link out of the source folder: put the file itself there")
    if not real.is_file():
        raise Rejected("not a regular file")
    size = real.stat().st_size
    if size == 0:
        raise Rejected("empty file")
    if size > config.max_file_mb * _MB:
        raise Rejected(f"{size / _MB:.0f} MB is over max_file_mb = {config.max_file_mb}: split it or raise the limit")
    return real, size


def _consent(file: Path, root: Path, config: IngestConfig) -> Sidecar:
    """Read licence and consent of a file."""
    try:
        sidecar = read_sidecar(file, root)
    except ValueError as error:
        raise Rejected(str(error)) from error
    if not config.require_consent:
        return sidecar or Sidecar()
    if sidecar is None:
        raise Rejected(
            f"no consent: add {file.name}.yaml or consent.yaml with licence and consent_ref, "
            "or set ingest.require_consent=false"
        )
    if not has_consent(sidecar.consent_ref) and not config.allow_unconsented:
        raise Rejected(
            f"no consent: its consent_ref is {sidecar.consent_ref!r}; file the consent of the people in it, "
            "or set ingest.allow_unconsented=true for tests"
        )
    return sidecar


def _probe(file: Path) -> float:
    """Return the duration (s) of a video whose first frame decodes; a decoder crash or hang rejects only this file."""
    worker = _prober()
    worker.begin(open_video, file, Budget(_PROBE_S, _PROBE_MB))
    first_done([worker])
    found, (reason, detail) = worker.result()
    if found is None:
        raise Rejected(f"{reason}: {detail}")
    if "rejection" in found:
        raise Rejected(found["rejection"])
    return float(found["duration_s"])


@functools.cache
def _prober() -> Worker:
    """Return the process that opens untrusted files; it runs until this process exits."""
    return Worker()
