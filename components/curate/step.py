"""The curation step: raw videos in, encoded and documented training clips out."""

import dataclasses
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from components.curate.clips.encode import load_encoder
from components.curate.clips.references import REFERENCE_REASONS
from components.curate.clips.store import read_members
from components.curate.config import CurationConfig
from components.curate.labels.cameras import find_cameras
from components.curate.report.funnel import Stage, check, stage
from components.curate.report.outputs import contents, page, passing, totals
from components.curate.run import analysis_cache as kept
from components.curate.run import partial_results, passes
from components.curate.run.analysis_cache import KeptLooks
from components.curate.run.executor import Executor
from components.curate.scorers import COLUMNS, passports, try_extra
from components.curate.video.duplicates import find_copies
from components.curate.video.identity import Person, hinted, name_people
from components.curate.video.roi_cache import discard
from components.dataset.manifest import read_rows, write_rows
from components.dataset.shards import write_shards
from components.dataset.sources import Source, read_sources
from components.dataset.tombstones import TOMBSTONES, Tombstones
from components.dataset.validate import validate
from components.runtime import heartbeat
from lpm_model.config import VIDEO_FPS
from lpm_model.digests import dataset_digest
from lpm_model.files import read_json, staged, working_folder, write_json
from lpm_model.progress import Progress

log = logging.getLogger(__name__)

Outcomes = dict[str, dict[str, Any]]
"""Outcome of a stage by source id."""
_ABOUT = {partial_results.LOOK: "looking at sources", partial_results.CLIPS: "making clips"}


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
    to_try_again: int
    """How many of them were left out for a reason that may not hold another time; the same command tries them again."""
    refused_by_ingest: list[dict[str, str]]
    """Files that never became sources, from the raw folder's ingest.json: file, reason."""


def curate(
    raw: Path, dataset: Path, config: CurationConfig, progress: Progress, looks: Path | None = None
) -> CurationReport:
    """Cut, filter, label, caption and encode the videos of a corpus.

    Args:
        raw: folder with sources.jsonl and media/, as ingest writes it.
        dataset: output folder, replaced as a whole when the step succeeds; a killed run is resumed, and so is one
            that left sources out for reasons that may not hold another time.
        config: what to do.
        progress: bars.
        looks: folder where first passes are found and kept for other runs (see `kept`); None = nowhere.

    Returns:
        The report that is also written to dataset/curation.json.

    Raises:
        ValueError: raw is no corpus, nothing is left, retention is out of bounds or the manifest fails its gate.
    """
    sources = read_sources(raw)
    try_extra(config.scorers)
    digest = load_encoder(config.autoencoder).digest
    with staged(dataset, resume=True) as folder:
        base = passes.Job(raw=raw, parts=folder / "parts", source=sources[0], config=config)
        stones = Tombstones(Path(config.tombstones), dataset / TOMBSTONES, folder / TOMBSTONES)
        left_out = _leave_out(sources, config, stones)
        chosen = [source for source in sources if source.source_id not in left_out]
        shelf = None
        if looks is not None:
            shelf = KeptLooks(looks, config.keep_looks_gb * 1e9)
            kept.forget(looks, stones.all)
        with Executor(config.executor, config.workers) as executor:
            looked = _look(executor, _look_jobs(base, chosen), progress, shelf)
            jobs = _clip_jobs(base, chosen, looked, digest)
            outcomes = _run(executor, partial_results.CLIPS, jobs, progress)
        write_json(
            folder / "timing.json",
            {partial_results.LOOK: _timing(sources, looked), partial_results.CLIPS: _timing(sources, outcomes)},
        )
        rejected = left_out | {k: v for k, v in (looked | outcomes).items() if not v["ok"]}
        good = [source for source in chosen if source.source_id not in rejected]
        rows = _assemble(folder, good, config, stones, progress)
        stages = _funnel(sources, rejected, [outcomes[source.source_id] for source in good], rows)
        person_s = sum(outcomes[source.source_id]["person_frames"] for source in good) / VIDEO_FPS
        kept_s = sum(row["seconds"] for row in rows if row["kept"])
        check(stages, kept_s, person_s, (config.min_retention, config.max_retention))
        report = _report(raw, folder, sources, rows, stages, rejected, digest, kept_s / person_s)
        if stones.all:
            stones.write(folder / TOMBSTONES)
        _describe(folder, config, report, rows, progress)
        if not report.to_try_again:
            shutil.rmtree(folder / "parts")
    if report.to_try_again:  # what is done stays for the next try, where a killed run leaves it
        left = partial_results.restart(working_folder(dataset))
        os.replace(dataset / "parts", left / "parts")
        for source in sources:  # nobody knows when that is: pictures of a killed worker must not lie there until then
            discard(left / "parts" / source.source_id)
    return report


def _leave_out(sources: list[Source], config: CurationConfig, stones: Tombstones) -> Outcomes:
    """Sources that need no look: forgotten ones, copies, and pictures of both people where each has a camera."""
    cameras = {(source.conversation_id, source.camera) for source in sources if source.conversation_id}
    out: Outcomes = {}
    first: dict[str, str] = {}
    for source in sources:
        if known := stones.forbids(source.sha256, source.source_id, source.person_hint):
            detail = f"removed on request (lpm data forget), known by its {known}"
            out[source.source_id] = _refusal(source, "forgotten", detail)
            continue
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


def _look_jobs(base: passes.Job, sources: list[Source]) -> list[passes.Job]:
    """First pass over all sources, each with a share of the room for pictures by its file's size."""
    room = min(base.config.keep_pictures_gb * 1e9, shutil.disk_usage(base.parts.parent).free / 2)
    each_byte = room / max(sum(source.bytes for source in sources), 1)
    return [
        dataclasses.replace(
            base,
            source=source,
            key=passes.look_key(source, base.config),
            cutout_bytes=each_byte * source.bytes,
        )
        for source in sources
    ]


def _clip_jobs(base: passes.Job, sources: list[Source], looked: Outcomes, digest: str) -> list[passes.Job]:
    """Second pass over the sources that can be used, each with its partner's first pass."""
    good = [source for source in sources if looked[source.source_id]["ok"]]
    copies = find_copies([passes.fingerprint(dataclasses.replace(base, source=source)) for source in good])
    partners = _partners(base, good, set(copies))
    jobs = []
    for source in good:
        partner = partners.get(source.source_id)
        job = dataclasses.replace(base, source=source, copied=tuple(copies.get(source.source_id, ())))
        job = dataclasses.replace(job, partner_id=partner.source_id if partner else None)
        partner_key = passes.look_key(partner, base.config) if partner else ""
        jobs.append(dataclasses.replace(job, key=passes.clips_key(job, partner_key, digest)))
    return jobs


def _partners(base: passes.Job, sources: list[Source], copies: set[str]) -> dict[str, Source]:
    """The source of each one's conversation partner: as conversation and camera say, else by the sound of one folder.

    Copies take no part in the second, lest a recording be paired with itself.
    """
    by_camera = {(source.conversation_id, source.camera): source for source in sources if source.conversation_id}
    partners: dict[str, Source] = {}
    folders: dict[str, list[Source]] = {}
    for source in sources:
        side = {"a": "b", "b": "a"}.get(source.camera or "")
        other = by_camera.get((source.conversation_id, side)) if source.conversation_id else None
        if other is not None:
            partners[source.source_id] = other
        elif not source.conversation_id and not source.camera and source.source_id not in copies:
            folders.setdefault(str(Path(source.file).parent), []).append(source)
    limit = base.config.states.match_cameras_max
    for folder, alone in folders.items():
        if len(alone) > limit:
            if limit:
                log.info("%s: %d sources without a conversation_id are too many to pair", folder, len(alone))
            continue
        looks = [(one, passes.recording(dataclasses.replace(base, source=one))) for one in alone]
        chosen = [(one, recording) for one, recording in looks if recording is not None]
        for a, b in find_cameras([recording for _, recording in chosen], base.config.states.max_camera_offset_s):
            first, second = chosen[a][0], chosen[b][0]
            log.info("%s and %s show one conversation, by their sound", first.file, second.file)
            partners |= {first.source_id: second, second.source_id: first}
    return partners


def _look(executor: Executor, jobs: list[passes.Job], progress: Progress, shelf: KeptLooks | None) -> Outcomes:
    """First pass over all sources but those that an earlier run has looked at."""
    if shelf is None:
        return _run(executor, partial_results.LOOK, jobs, progress)
    for job in jobs:
        if passes.done_before(job, partial_results.LOOK) is None:
            shelf.give(job)
    try:
        return _run(executor, partial_results.LOOK, jobs, progress, shelf.keep)
    finally:
        shelf.trim()


def _run(
    executor: Executor,
    stage: str,
    jobs: list[passes.Job],
    progress: Progress,
    keep: Callable[[passes.Job, dict[str, Any]], None] = lambda job, outcome: None,
) -> Outcomes:
    """Map a pass over the jobs that are not done, the largest files first so that no long one is left to the end alone.

    `keep` is told each outcome as it comes.
    """
    if not jobs:
        return {}
    about = _ABOUT[stage]
    outcomes = {job.source.source_id: done for job in jobs if (done := passes.done_before(job, stage)) is not None}
    _tell(jobs, outcomes)
    waiting = sorted(
        (job for job in jobs if job.source.source_id not in outcomes),
        key=lambda job: (-job.source.bytes, job.source.source_id),
    )
    results = executor.map(passes.task(stage, jobs[0].config.limits), waiting)
    try:
        with heartbeat.told(jobs[0].parts, about):
            for number, outcome in progress.track(results, about, total=len(jobs), done=len(outcomes)):
                job = waiting[number]
                outcomes[job.source.source_id] = outcome
                _tell([job], outcomes)
                keep(job, outcome)
    except KeyboardInterrupt:
        log.warning("%s: stopped at %d of %d; the same command goes on from there", about, len(outcomes), len(jobs))
        raise
    return outcomes


def _tell(jobs: list[passes.Job], outcomes: Outcomes) -> None:
    """A line for each source that is left out."""
    for job in jobs:
        outcome = outcomes.get(job.source.source_id, {"ok": True})
        if not outcome["ok"]:
            again = "; the same command tries it again" if outcome["reason"] in partial_results.PASSING else ""
            log.warning("%s is left out: %s: %s%s", job.source.file, outcome["reason"], outcome["detail"], again)


def _timing(sources: list[Source], outcomes: Outcomes) -> dict[str, Any]:
    """What a pass cost: worker seconds and bytes read, also for sources done before a restart.

    Its parts are those of sources that were not left out: seconds of parts_of_s, spent on video_s of video.
    """
    done = [
        (source, outcomes[source.source_id]) for source in sources if "seconds" in outcomes.get(source.source_id, {})
    ]
    refused_s = [outcome["seconds"] for _, outcome in done if not outcome["ok"]]
    good = [outcome for _, outcome in done if outcome["ok"]]
    parts_s: Counter[str] = Counter()
    for outcome in good:
        parts_s.update(outcome["parts_s"])
    timing = {
        "sources": len(done),
        "reused": sum("reused" in outcome for _, outcome in done),
        "seconds": round(sum(outcome["seconds"] for _, outcome in done), 3),
        "bytes": sum(source.bytes for source, _ in done),
        "slowest_refusal_s": max(refused_s, default=0.0),
        "video_s": round(sum(outcome["frames"] for outcome in good) / VIDEO_FPS, 3),
        "parts_of_s": round(sum(outcome["seconds"] for outcome in good), 3),
        "parts_s": {name: round(value, 3) for name, value in parts_s.most_common()},
    }
    log.info("%(sources)d sources, %(reused)d of them done before: %(seconds).1f s, %(bytes)d bytes", timing)
    return timing


def _assemble(
    folder: Path, sources: list[Source], config: CurationConfig, stones: Tombstones, progress: Progress
) -> list[dict[str, Any]]:
    """Manifest, shards and previews from the parts, in order of the clips' ids."""
    homes: dict[str, Path] = {}
    rows: list[dict[str, Any]] = []
    for source in sources:
        part = folder / "parts" / source.source_id / partial_results.CLIPS
        found = read_rows(part / "rows.parquet")
        homes |= {row["clip_id"]: part for row in found}
        rows += found
    _name_people(rows, {source.source_id: source.person_hint for source in sources}, homes, config)
    rows = sorted((r for r in rows if not stones.forbids("", r["person_id"])), key=lambda row: row["clip_id"])
    names = {row["clip_id"]: row["person_id"] for row in rows}
    kept = [row["clip_id"] for row in rows if row["kept"]]
    for name in ("shards", "previews"):
        partial_results.restart(folder / name)
    clips = ((clip_id, _members(homes[clip_id], clip_id, names[clip_id])) for clip_id in kept)
    told = progress.track(clips, "writing shards", total=len(kept)) if kept else clips
    shards = write_shards(folder / "shards", told, config.clips_per_shard)
    for row in rows:
        row["shard"] = shards.get(row["clip_id"], "")
        shutil.copyfile(homes[row["clip_id"]] / f"{row['clip_id']}.jpg", folder / "previews" / f"{row['clip_id']}.jpg")
    write_rows(folder / "manifest.parquet", rows, COLUMNS)
    return rows


def _name_people(
    rows: list[dict[str, Any]], hints: dict[str, str | None], homes: dict[str, Path], config: CurationConfig
) -> None:
    """Give one person one name across cuts and sources; the performer's people are none of the others."""
    people: dict[tuple[str, int], Person] = {}
    kinds: dict[float, list[Person]] = {}
    for row in rows:
        key = (row["source_id"], row["track"])
        if key not in people:
            with np.load(homes[row["clip_id"]] / passes.PEOPLE, allow_pickle=False) as data:
                embedding, span = data["embeddings"][row["track"]], data["spans"][row["track"]]
            hint = hints[row["source_id"]] if row["person_id"] == hints[row["source_id"]] else None
            people[key] = Person(
                key=key, name=row["person_id"], hint=hint, span=(int(span[0]), int(span[1])), embedding=embedding
            )
            kinds.setdefault(config.identity.limit(row["origin"]), []).append(people[key])
    names = {key: name for limit, alike in kinds.items() for key, name in name_people(alike, limit).items()}
    names = hinted(names, hints)
    renamed = {people[key].name: name for key, name in names.items()}
    for row in rows:
        row["person_id"] = names[row["source_id"], row["track"]]
        row["partner_person"] = renamed.get(row["partner_person"], row["partner_person"])


def _members(part: Path, clip_id: str, person_id: str) -> dict[str, Any]:
    members = read_members(part, clip_id)
    return {**members, "json": {**members["json"], "person_id": person_id}}


def _funnel(
    sources: list[Source], rejected: Outcomes, outcomes: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> list[Stage]:
    """Counts of every stage, from files to kept clips."""
    people: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    for outcome in outcomes:
        people.update(outcome["track_reasons"])
        frames.update(outcome["frame_reasons"])
    alone = [row["reason"] for row in rows if row["reason"] in REFERENCE_REASONS]
    missed = [row["reason"] for row in rows if row["reason"] and row["reason"] not in REFERENCE_REASONS]
    return [
        stage("sources", "source", len(sources), [item["reason"] for item in rejected.values()]),
        stage("people", "track", sum(outcome["people"] for outcome in outcomes), people),
        stage("cut", "frame", sum(outcome["person_frames"] for outcome in outcomes), frames),
        stage("quality", "clip", len(rows), missed),
        stage("references", "clip", len(rows) - len(missed), alone),
    ]


def _report(
    raw: Path,
    folder: Path,
    sources: list[Source],
    rows: list[dict[str, Any]],
    stages: list[Stage],
    rejected: Outcomes,
    digest: str,
    retention: float,
) -> CurationReport:
    kept = [row for row in rows if row["kept"]]
    left_out = [{k: str(item[k]) for k in ("file", "reason", "detail")} for _, item in sorted(rejected.items())]
    before = read_json(raw / "ingest.json")["rejected"] if (raw / "ingest.json").is_file() else []
    return CurationReport(
        dataset_digest=dataset_digest(folder),
        autoencoder_digest=digest,
        sources=len(sources),
        sources_used=len({row["source_id"] for row in kept}),
        clips_dropped=len(rows) - len(kept),
        **totals(rows),
        retention=round(retention, 4),
        funnel=[item.as_dict() for item in stages],
        rejected=left_out,
        to_try_again=passing(left_out),
        refused_by_ingest=[{k: str(item[k]) for k in ("file", "reason")} for item in before],
    )


def _describe(
    folder: Path, config: CurationConfig, report: CurationReport, rows: list[dict[str, Any]], progress: Progress
) -> None:
    """Write dataset.json and curation.json, check all that lies in the folder, draw the page over it."""
    described = {
        "size_px": config.size_px,
        "fps": VIDEO_FPS,
        "autoencoder_digest": report.autoencoder_digest,
        "clip_frames": config.clip_frames,
        "thresholds": dataclasses.asdict(config.active_thresholds),
        **contents(folder, rows),
        "scorers": passports(config.scorers),
    }
    write_json(folder / "dataset.json", described)
    write_json(folder / "curation.json", report)
    tasks = [partial(page, folder, rows, dataclasses.asdict(report), described)]
    if config.validate:
        tasks.insert(0, partial(validate, rows, folder, config.clip_frames))
    for task in progress.track(tasks, "checks and page"):
        task()
