"""Ingest: from the performer, a folder or an S3 prefix to raw media with known origin, licence and consent."""

import functools
import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from components.dataset.names import source_id_of
from components.dataset.tombstones import Tombstones
from components.ingest.config import IngestConfig
from components.ingest.formats import why_not
from components.ingest.sidecar import Sidecar, sidecar_of
from components.ingest.sniff import look_into
from components.runtime.guarded_worker import Budget, Worker, first_done
from lpm_model.digests import file_digest
from lpm_model.files import link_file, locked, staged, write_json
from lpm_model.progress import Progress

log = logging.getLogger(__name__)

Origin = Literal["performer", "folder", "s3"]
_MB: Final = 1 << 20
_PROBE_S: Final = 8.0
"""Longest look into one file (s)."""
_PROBE_MB: Final = 1536.0
"""Memory for it (MiB)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One raw recording: a line of sources.jsonl."""

    source_id: str
    """Safe name, unique in the run."""
    file: str
    """Path below the raw folder."""
    sha256: str
    """Digest of the bytes."""
    bytes: int
    """Size."""
    origin: Origin
    """Which kind of source it came from."""
    licence: str
    """Terms of use; empty = unknown."""
    consent_ref: str
    """Where consent is filed; empty = unknown."""
    conversation_id: str | None
    """Shared by recordings of one conversation."""
    camera: str | None
    """a, b or two_shot."""
    person_hint: str | None
    """Name of the person in the picture, if known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A file that was not let in."""

    file: str
    """Its path in the source."""
    reason: str
    """Why, and what would help."""
    same_as: str = ""
    """Name of the recording whose content it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """What came in and what did not."""

    source: str
    """As asked for."""
    origin: Origin
    """Kind of source."""
    sources: int
    """Recordings let in."""
    bytes: int
    """Their size in total."""
    seconds: float
    """Their length in total (s)."""
    licences: dict[str, int]
    """Recordings under each licence."""
    rejected: tuple[Rejection, ...]
    """Files that were refused, by name."""
    others: int
    """Files that are neither video nor sound nor YAML, by the end of their names; nobody looked at them."""


class _Refusal(Exception):
    """A file is not let in; the message is the reason."""

    same_as = ""
    """Name of the recording whose content it has."""


class _Copy(_Refusal):
    """Another file of the same content was let in."""

    def __init__(self, source_id: str) -> None:
        super().__init__(f"same content as {source_id}")
        self.same_as = source_id


@dataclass(slots=True)
class _LeftOut:
    """What does not come in."""

    rejected: list[Rejection] = field(default_factory=list)
    others: int = 0

    def refuse(self, file: str, reason: str, same_as: str = "") -> None:
        """Name a file with the reason."""
        log.warning("%s is left out: %s", file, reason)
        self.rejected.append(Rejection(file=file, reason=reason, same_as=same_as))


def ingest(source: str, raw: Path, config: IngestConfig, progress: Progress) -> IngestReport:
    """Collect raw media: `raw/media/*`, `raw/sources.jsonl`, `raw/ingest.json`.

    A file that is empty, broken, too large or without consent is named in the report with the reason and left out.

    Args:
        source: "performer", a folder, or "s3://bucket/prefix" (server and keys from the AWS_* environment).
        raw: output folder; replaced when the step ends well.
        config: what is let in.
        progress: shown while files are read.

    Raises:
        ValueError: the source doesn't exist or can't be reached, or nothing in it could be used.
    """
    with staged(raw, resume=True) as work:
        left = _LeftOut()
        if source == "performer":
            origin: Origin = "performer"
            root = _render(work / "performer", config, progress)
        elif source.startswith("s3://"):
            from components.ingest.s3 import download

            origin = "s3"
            root = work / "download"
            refused, left.others = download(source, root, config, progress)
            left.rejected += [Rejection(file=name, reason=why) for name, why in refused]
        elif "://" in source:
            raise ValueError(f"source {source!r} is an address: give performer, a folder or s3://bucket/prefix")
        else:
            origin = "folder"
            root = _folder(source)
        others: list[tuple[Origin, Path]] = [("folder", _folder(name)) for name in config.also]
        report = _collect(source, [(origin, root), *others], work, config, progress, left)
        for fetched in ("download", "performer"):
            shutil.rmtree(work / fetched, ignore_errors=True)
    return report


def _folder(name: str) -> Path:
    """A source folder that exists."""
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ValueError(f"source {name} is a file: give the folder that holds the videos, such as {folder.parent}")
    if not folder.is_dir():
        raise ValueError(f"source folder {name} does not exist: give performer, a folder or s3://bucket/prefix")
    return folder


def _render(own: Path, config: IngestConfig, progress: Progress) -> Path:
    """The performer's corpus, rendered now (into `own` without a cache) or found; its truth goes to config.truth."""
    from components.performer.compose import render_corpus

    text = json.dumps(asdict(replace(config.performer, workers=1)), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    corpus = Path(config.performer_cache) / name if config.performer_cache else own
    corpus.mkdir(parents=True, exist_ok=True)
    with locked(corpus / "media"):
        render_corpus(corpus / "media", config.performer, progress, corpus / "truth")
    if config.truth:
        Path(config.truth).mkdir(parents=True, exist_ok=True)
        for file in sorted((corpus / "truth").glob("*.npz")):
            link_file(file, Path(config.truth) / file.name)
    return corpus / "media"


def _collect(
    source: str,
    roots: list[tuple[Origin, Path]],
    work: Path,
    config: IngestConfig,
    progress: Progress,
    left: _LeftOut,
) -> IngestReport:
    """Let every usable file under the roots in and write the two reports."""
    media = work / "media"
    media.mkdir(exist_ok=True)
    taken: dict[str, Source] = {}
    seconds = 0.0
    files = [(origin, root, file) for origin, root in roots for file in _videos(root, config, left)]
    for origin, root, file in progress.track(files, "ingest"):
        name = file.relative_to(root).as_posix()
        try:
            entry, length_s = _admit(file, root, media, origin, config)
            if entry.sha256 in taken:
                raise _Copy(taken[entry.sha256].source_id)
        except _Refusal as refusal:
            left.refuse(name, str(refusal), refusal.same_as)
            continue
        taken[entry.sha256] = entry
        seconds += length_s
    sources = sorted(taken.values(), key=lambda one: one.source_id)
    if not sources:
        raise ValueError(f"nothing in {source} could be used: {_reasons(left, config)}")
    for stray in set(media.iterdir()) - {work / one.file for one in sources}:
        stray.unlink()
    lines = "".join(json.dumps(asdict(one), sort_keys=True) + "\n" for one in sources)
    (work / "sources.jsonl").write_text(lines, encoding="utf-8")
    licences = [one.licence or "unknown" for one in sources]
    report = IngestReport(
        source=source,
        origin=roots[0][0],
        sources=len(sources),
        bytes=sum(one.bytes for one in sources),
        seconds=round(seconds, 3),
        licences={licence: licences.count(licence) for licence in sorted(set(licences))},
        rejected=tuple(sorted(left.rejected, key=lambda one: one.file)),
        others=left.others,
    )
    write_json(work / "ingest.json", report)
    return report


def _reasons(left: _LeftOut, config: IngestConfig) -> str:
    """Why there is nothing."""
    reasons = "; ".join(f"{one.file}: {one.reason}" for one in left.rejected[:3])
    others = f"; files of other kinds: {left.others}" if left.others else ""
    return reasons or f"no video files found, which end in {', '.join(config.extensions)}{others}"


def _videos(root: Path, config: IngestConfig, left: _LeftOut) -> list[Path]:
    """Video files below a folder in a fixed order; hidden ones are not looked at, linked folders not entered."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(folder) / name for name in sorted(names) if not name.startswith(".")):
            if file.suffix.lower() in config.extensions:
                found.append(file)
            elif reason := why_not(file.name, config.extensions):
                left.refuse(file.relative_to(root).as_posix(), reason)
            else:
                left.others += file.suffix.lower() != ".yaml"
        if len(found) > config.max_files:
            raise ValueError(f"{root} holds more than {config.max_files} videos: raise max_files if that is meant")
    return found


def _admit(file: Path, root: Path, media: Path, origin: Origin, config: IngestConfig) -> tuple[Source, float]:
    """Check one file and put it into the media folder.

    Returns:
        Its entry and its length (s).

    Raises:
        _Refusal: it is not let in.
    """
    real = file.resolve()
    if not real.is_relative_to(root.resolve()):
        raise _Refusal("a link out of the source folder: put the file itself there")
    if not real.is_file():
        raise _Refusal("not a regular file")
    size = real.stat().st_size
    if size == 0:
        raise _Refusal("empty file")
    if size > config.max_file_mb * _MB:
        raise _Refusal(f"{size / _MB:.0f} MB is over max_file_mb = {config.max_file_mb}: split it or raise the limit")
    try:
        sidecar = sidecar_of(file, root)
    except ValueError as error:
        raise _Refusal(str(error)) from error
    if sidecar is None:
        if config.require_consent:
            raise _Refusal(
                f"no consent: add {file.name}.yaml or consent.yaml with licence and consent_ref, "
                "or set ingest.require_consent=false"
            )
        sidecar = Sidecar()
    seconds = _probe(real)
    digest = file_digest(real)
    if match := Tombstones(Path(config.tombstones)).forbids(digest, sidecar.person_hint):
        known_by = {"bytes": "bytes", "name": "person_hint"}[match]
        raise _Refusal(f"removed on request (lpm data forget), known by its {known_by}: it may not come back")
    source_id = source_id_of(file.relative_to(root).as_posix(), digest)
    target = media / f"{source_id}{file.suffix.lower()}"
    link_file(real, target)
    entry = Source(
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
    return entry, seconds


def _probe(file: Path) -> float:
    """Length (s) of a video whose first picture can be decoded; a decoder's crash or hang costs only its file."""
    worker = _prober()
    worker.begin(look_into, file, Budget(_PROBE_S, _PROBE_MB))
    first_done([worker])
    found, (reason, detail) = worker.result()
    if found is None:
        raise _Refusal(f"{reason}: {detail}")
    if "refusal" in found:
        raise _Refusal(found["refusal"])
    return float(found["seconds"])


@functools.cache
def _prober() -> Worker:
    """The process that opens files nobody has looked into yet; it lives as long as this one."""
    return Worker()


def read_sources(raw: Path) -> list[Source]:
    """Entries of `raw/sources.jsonl`.

    Raises:
        ValueError: the file is missing or a line of it is broken.
    """
    path = raw / "sources.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing: run ingest first")
    try:
        values: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Source(**value) for value in values]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is broken ({error}): run ingest again") from error
