"""The ingest step: collect raw media with known origin, licence and consent.

1. render, download or locate the source folder; 2. list its video files; 3. accept or reject each;
4. write sources.jsonl and ingest.json.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from components.dataset.sources import Source
from components.ingest.accept import Duplicate, Rejected, accept, find_videos
from components.ingest.config import IngestConfig
from components.ingest.report import IngestReport, Origin, Rejection, SkipLog
from lpm_model.files import link_file, locked, staged, write_json
from lpm_model.progress import Progress


def ingest(source: str, raw: Path, config: IngestConfig, progress: Progress) -> IngestReport:
    """Collect raw media: `raw/media/*`, `raw/sources.jsonl`, `raw/ingest.json`.

    Files that are empty, broken, too large or without consent are skipped; the report names each with the reason.

    Args:
        source: "performer", a folder, or "s3://bucket/prefix" (server and keys from the AWS_* environment).
        raw: output folder; replaced when the step succeeds.
        config: limits and consent rules.
        progress: progress bar.

    Raises:
        ValueError: the source does not exist or cannot be reached, or no file in it is accepted.
    """
    with staged(raw, resume=True) as work:
        skips = SkipLog()
        origin, root = _fetch(source, work, config, progress, skips)
        folders: list[tuple[Origin, Path]] = [(origin, root)]
        folders += [("folder", _existing_folder(name)) for name in config.extra_folders]
        sources, duration_s = _accept_all(folders, work, config, progress, skips)
        if not sources:
            raise ValueError(f"no file in {source} is accepted: {_explain_no_files(skips, config)}")
        report = _write(work, source, origin, sources, duration_s, skips)
        for temporary in ("download", "performer"):
            shutil.rmtree(work / temporary, ignore_errors=True)
    return report


def _fetch(source: str, work: Path, config: IngestConfig, progress: Progress, skips: SkipLog) -> tuple[Origin, Path]:
    """Render, download or locate the source; return its kind and its folder."""
    if source == "performer":
        return "performer", _render(work / "performer", config, progress)
    if source.startswith("s3://"):
        from components.ingest.s3 import download

        rejected, skips.ignored = download(source, work / "download", config, progress)
        skips.rejected += [Rejection(file=key, reason=reason) for key, reason in rejected]
        return "s3", work / "download"
    if "://" in source:
        raise ValueError(f"source {source!r} is an address: give performer, a folder or s3://bucket/prefix")
    return "folder", _existing_folder(source)


def _existing_folder(name: str) -> Path:
    """Return the path of a source folder; raise an error if it does not exist."""
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ValueError(f"source {name} is a file: give the folder that holds the videos, such as {folder.parent}")
    if not folder.is_dir():
        raise ValueError(f"source folder {name} does not exist: give performer, a folder or s3://bucket/prefix")
    return folder


def _render(uncached: Path, config: IngestConfig, progress: Progress) -> Path:
    """Return the folder of the synthetic corpus, rendered or cached; without a cache it is `uncached`."""
    from components.performer.compose import render_corpus

    text = json.dumps(asdict(replace(config.performer, workers=1)), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    corpus = Path(config.performer_cache) / name if config.performer_cache else uncached
    corpus.mkdir(parents=True, exist_ok=True)
    with locked(corpus / "media"):
        render_corpus(corpus / "media", config.performer, progress, corpus / "ground_truth")
    if config.ground_truth:
        Path(config.ground_truth).mkdir(parents=True, exist_ok=True)
        for file in sorted((corpus / "ground_truth").glob("*.npz")):
            link_file(file, Path(config.ground_truth) / file.name)
    return corpus / "media"


def _accept_all(
    folders: list[tuple[Origin, Path]], work: Path, config: IngestConfig, progress: Progress, skips: SkipLog
) -> tuple[list[Source], float]:
    """Accept every usable file; return the recordings, ordered by id, and their total duration (s)."""
    media = work / "media"
    media.mkdir(exist_ok=True)
    accepted: dict[str, Source] = {}
    total_s = 0.0
    files = [(origin, root, file) for origin, root in folders for file in find_videos(root, config, skips)]
    for origin, root, file in progress.track(files, "ingest"):
        name = file.relative_to(root).as_posix()
        try:
            entry, duration_s = accept(file, root, media, origin, config)
            if entry.sha256 in accepted:
                raise Duplicate(accepted[entry.sha256].source_id)
        except Rejected as error:
            skips.reject(name, str(error), error.same_as)
            continue
        accepted[entry.sha256] = entry
        total_s += duration_s
    sources = sorted(accepted.values(), key=lambda one: one.source_id)
    for stray in set(media.iterdir()) - {work / one.file for one in sources}:
        stray.unlink()
    return sources, total_s


def _write(
    work: Path, source: str, origin: Origin, sources: list[Source], duration_s: float, skips: SkipLog
) -> IngestReport:
    """Write sources.jsonl and ingest.json."""
    lines = "".join(json.dumps(asdict(one), sort_keys=True) + "\n" for one in sources)
    (work / "sources.jsonl").write_text(lines, encoding="utf-8")
    licences = [one.licence or "unknown" for one in sources]
    report = IngestReport(
        source=source,
        origin=origin,
        sources=len(sources),
        bytes=sum(one.bytes for one in sources),
        seconds=round(duration_s, 3),
        licences={licence: licences.count(licence) for licence in sorted(set(licences))},
        rejected=tuple(sorted(skips.rejected, key=lambda one: one.file)),
        ignored=skips.ignored,
    )
    write_json(work / "ingest.json", report)
    return report


def _explain_no_files(skips: SkipLog, config: IngestConfig) -> str:
    """Explain why nothing was accepted."""
    reasons = "; ".join(f"{one.file}: {one.reason}" for one in skips.rejected[:3])
    ignored = f"; files of other types: {skips.ignored}" if skips.ignored else ""
    return reasons or f"it has no video files ({', '.join(config.extensions)}){ignored}"
