"""The curation step: raw videos in, encoded and documented training clips out."""

import dataclasses
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.common import StepProgress, read_json, staged, write_json
from components.curate import parts, work
from components.curate.config import CurationConfig
from components.curate.duplicates import find_copies
from components.curate.encode import load_encoder
from components.curate.executor import Executor
from components.curate.funnel import Stage, check, stage
from components.curate.gate import validate
from components.curate.manifest import STATE_NAMES, Source, read_rows, write_rows
from components.curate.report import write_page
from components.curate.scorers import make_scorers
from components.curate.shards import MEMBERS, write_shards
from lpm_model.config import VIDEO_FPS, from_mapping
from lpm_model.digests import dataset_digest

Outcomes = dict[str, dict[str, Any]]
"""Outcome of a stage by source id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationReport:
    """What curation did; written as curation.json."""

    dataset_digest: str
    """Digest of manifest and shards: the dataset's version."""
    autoencoder_digest: str
    """Digest of the autoencoder whose latents the shards hold."""
    sources: int
    """Sources listed in raw/."""
    sources_used: int
    """Sources that gave at least one clip."""
    clips: int
    """Clips kept."""
    clips_dropped: int
    """Clips that missed a threshold."""
    seconds: float
    """Length of all kept clips."""
    state_seconds: dict[str, float]
    """Seconds of the kept clips by state."""
    retention: float
    """Kept seconds over the seconds in which people were seen."""
    funnel: list[dict[str, Any]]
    """Every stage with unit, in, out and reasons."""
    rejected: list[dict[str, str]]
    """Sources left out: file, reason, detail."""


def curate(raw: Path, dataset: Path, config: CurationConfig, progress: StepProgress) -> CurationReport:
    """Cut, filter, label, caption and encode the videos of a corpus.

    Args:
        raw: folder with sources.jsonl and media/, as ingest writes it.
        dataset: output folder, replaced as a whole when the step succeeds; a killed run is resumed.
        config: what to do.
        progress: bars.

    Returns:
        The report that is also written to dataset/curation.json.

    Raises:
        ValueError: raw is no corpus, nothing is left, retention is out of bounds or the manifest fails its gate.
    """
    sources = read_sources(raw)
    digest = load_encoder(config.autoencoder).digest
    with staged(dataset, resume=True) as folder:
        base = work.Job(raw=raw, parts=folder / "parts", source=sources[0], config=config)
        left_out = _leave_out(sources, config)
        chosen = [source for source in sources if source.source_id not in left_out]
        with Executor(config.executor, config.workers) as executor:
            looked = _run(executor, work.look, _look_jobs(base, chosen), progress, "looking at sources")
            jobs = _clip_jobs(base, chosen, looked, digest)
            outcomes = _run(executor, work.clips, jobs, progress, "making clips")
        rejected = left_out | {k: v for k, v in (looked | outcomes).items() if not v["ok"]}
        good = [source for source in chosen if source.source_id not in rejected]
        rows = _assemble(folder, good, config, progress)
        stages = _funnel(sources, rejected, [outcomes[source.source_id] for source in good], rows)
        person_s = sum(outcomes[source.source_id]["person_frames"] for source in good) / VIDEO_FPS
        kept_s = sum(row["seconds"] for row in rows if row["kept"])
        check(stages, kept_s, person_s, (config.min_retention, config.max_retention))
        if config.validate:
            validate(rows, config, folder / "validation")
        report = _report(folder, sources, rows, stages, rejected, digest, kept_s / person_s)
        _describe(folder, config, report, stages, rows)
        shutil.rmtree(folder / "parts")
    return report


def read_sources(raw: Path) -> list[Source]:
    """The lines of sources.jsonl in order of their ids.

    Raises:
        ValueError: the file is missing, a line is broken, or an id is used twice or cannot name a folder.
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


def _leave_out(sources: list[Source], config: CurationConfig) -> Outcomes:
    """Sources that need no look: copies of others, and pictures of both people where each has a camera."""
    cameras = {(source.conversation_id, source.camera) for source in sources if source.conversation_id}
    out: Outcomes = {}
    first: dict[str, str] = {}
    for source in sources:
        if source.sha256 and source.sha256 in first:
            out[source.source_id] = _refusal(source, "duplicate", f"same bytes as {first[source.sha256]}")
            continue
        first[source.sha256] = source.file
        singles = {(source.conversation_id, "a"), (source.conversation_id, "b")} <= cameras
        if source.camera == "two_shot" and singles and not config.use_two_shots:
            out[source.source_id] = _refusal(source, "two_shot_skipped", "both people have a camera of their own")
    return out


def _refusal(source: Source, reason: str, detail: str) -> dict[str, Any]:
    return {"ok": False, "file": source.file, "reason": reason, "detail": detail}


def _look_jobs(base: work.Job, sources: list[Source]) -> list[work.Job]:
    """First pass over all sources."""
    return [dataclasses.replace(base, source=source, key=work.look_key(source, base.config)) for source in sources]


def _clip_jobs(base: work.Job, sources: list[Source], looked: Outcomes, digest: str) -> list[work.Job]:
    """Second pass over the sources that can be used, each with its partner's first pass."""
    good = [source for source in sources if looked[source.source_id]["ok"]]
    by_camera = {(source.conversation_id, source.camera): source for source in good if source.conversation_id}
    copies = find_copies([work.fingerprint(dataclasses.replace(base, source=source)) for source in good])
    jobs = []
    for source in good:
        side = {"a": "b", "b": "a"}.get(source.camera or "")
        partner = by_camera.get((source.conversation_id, side)) if side and source.conversation_id else None
        job = dataclasses.replace(base, source=source, copied=tuple(copies.get(source.source_id, ())))
        job = dataclasses.replace(job, partner_id=partner.source_id if partner else None)
        partner_key = work.look_key(partner, base.config) if partner else ""
        jobs.append(dataclasses.replace(job, key=work.clips_key(job, partner_key, digest)))
    return jobs


def _run(executor: Executor, function: Any, jobs: list[work.Job], progress: StepProgress, about: str) -> Outcomes:
    done = progress.track(executor.map(function, jobs, work.died), about, total=len(jobs))
    return {jobs[number].source.source_id: outcome for number, outcome in done}


def _assemble(
    folder: Path, sources: list[Source], config: CurationConfig, progress: StepProgress
) -> list[dict[str, Any]]:
    """Manifest, shards and previews from the parts, in order of the clips' ids."""
    homes: dict[str, Path] = {}
    rows: list[dict[str, Any]] = []
    for source in sources:
        part = folder / "parts" / source.source_id / work.CLIPS
        found = read_rows(part / "rows.parquet")
        homes |= {row["clip_id"]: part for row in found}
        rows += found
    rows.sort(key=lambda row: row["clip_id"])
    kept = [row["clip_id"] for row in rows if row["kept"]]
    for name in ("shards", "previews"):
        parts.restart(folder / name)
    clips = ((clip_id, _members(homes[clip_id], clip_id)) for clip_id in kept)
    shards = write_shards(
        folder / "shards", progress.track(clips, "writing shards", total=len(kept)), config.clips_per_shard
    )
    for row in rows:
        row["shard"] = shards.get(row["clip_id"], "")
        shutil.copyfile(homes[row["clip_id"]] / f"{row['clip_id']}.jpg", folder / "previews" / f"{row['clip_id']}.jpg")
    write_rows(folder / "manifest.parquet", rows)
    return rows


def _members(part: Path, clip_id: str) -> dict[str, Any]:
    with np.load(part / f"{clip_id}.npz", allow_pickle=False) as data:
        return {**{name: data[name] for name in MEMBERS}, "json": read_json(part / f"{clip_id}.json")}


def _funnel(
    sources: list[Source], rejected: Outcomes, outcomes: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> list[Stage]:
    """Counts of every stage, from files to kept clips."""
    people: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    for outcome in outcomes:
        people.update(outcome["track_reasons"])
        frames.update(outcome["frame_reasons"])
    missed = [row["reason"] for row in rows if row["reason"] not in ("", "no_reference")]
    alone = [row["reason"] for row in rows if row["reason"] == "no_reference"]
    return [
        stage("sources", "source", len(sources), [item["reason"] for item in rejected.values()]),
        stage("people", "track", sum(outcome["people"] for outcome in outcomes), people),
        stage("cut", "frame", sum(outcome["person_frames"] for outcome in outcomes), frames),
        stage("quality", "clip", len(rows), missed),
        stage("references", "clip", len(rows) - len(missed), alone),
    ]


def _report(
    folder: Path,
    sources: list[Source],
    rows: list[dict[str, Any]],
    stages: list[Stage],
    rejected: Outcomes,
    digest: str,
    retention: float,
) -> CurationReport:
    kept = [row for row in rows if row["kept"]]
    frames: Counter[str] = Counter()
    for row in kept:
        for state, length in row["states"]:
            frames[STATE_NAMES[state]] += length
    return CurationReport(
        dataset_digest=dataset_digest(folder),
        autoencoder_digest=digest,
        sources=len(sources),
        sources_used=len({row["source_id"] for row in kept}),
        clips=len(kept),
        clips_dropped=len(rows) - len(kept),
        seconds=round(sum(row["seconds"] for row in kept), 3),
        state_seconds={name: round(count / VIDEO_FPS, 3) for name, count in sorted(frames.items())},
        retention=round(retention, 4),
        funnel=[item.as_dict() for item in stages],
        rejected=[{k: str(item[k]) for k in ("file", "reason", "detail")} for _, item in sorted(rejected.items())],
    )


def _describe(
    folder: Path, config: CurationConfig, report: CurationReport, stages: list[Stage], rows: list[dict[str, Any]]
) -> None:
    """dataset.json, curation.json and the page."""
    facts = {
        "clips": report.clips,
        "seconds": report.seconds,
        **{f"seconds {name}": value for name, value in report.state_seconds.items()},
        "sources used": f"{report.sources_used} of {report.sources}",
        "retention": f"{100 * report.retention:.1f} %",
    }
    described = {
        "digest": report.dataset_digest,
        "clips": report.clips,
        "seconds": report.seconds,
        "state_seconds": report.state_seconds,
        "size_px": config.size_px,
        "fps": VIDEO_FPS,
        "autoencoder_digest": report.autoencoder_digest,
        "sources": report.sources_used,
        "shards": sorted({row["shard"] for row in rows if row["shard"]}),
        "source_digests": sorted({row["source_sha256"] for row in rows if row["kept"]}),
        "thresholds": dataclasses.asdict(config.active_thresholds),
        "scorers": [scorer.passport for scorer in make_scorers(config.scorers)],
    }
    write_json(folder / "dataset.json", described)
    write_json(folder / "curation.json", report)
    write_page(folder / "curation.html", stages, rows, report.rejected, facts, folder / "previews")
