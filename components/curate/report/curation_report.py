"""The funnel and the report of a run, and everything that is written next to manifest and shards."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from components.curate.clips.references import REFERENCE_REASONS
from components.curate.report.funnel import Stage, check, stage
from components.curate.report.outputs import contents, count_retryable, page, totals
from components.curate.run.job import Run, SourceOutcomes
from components.curate.scorers import describe_scorers
from components.dataset.validate import validate
from lpm_model.config import VIDEO_FPS
from lpm_model.digests import dataset_digest
from lpm_model.files import read_json, write_json

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationReport:
    """The report of a curation run, written as curation.json."""

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
    """Rejected sources: file, reason, detail."""
    num_retryable: int
    """How many of them were rejected for transient failures; running the same command again retries them."""
    refused_by_ingest: list[dict[str, str]]
    """Files that never became sources, from the raw folder's ingest.json: file, reason."""


def build_report(run: Run, outcomes: SourceOutcomes, rows: Rows, encoder_digest: str) -> CurationReport:
    """Count every stage of the funnel and check how much of the sources is left.

    Raises:
        ValueError: no clip is left, or the retention is out of bounds.
    """
    stages = count_stages(outcomes, rows)
    kept = [row for row in rows if row["kept"]]
    kept_s = sum(row["seconds"] for row in kept)
    person_s = sum(outcome["person_frames"] for outcome in outcomes.accepted_clips) / VIDEO_FPS
    check(stages, kept_s, person_s, (run.config.min_retention, run.config.max_retention))
    rejected = [
        {name: str(outcome[name]) for name in ("file", "reason", "detail")}
        for _, outcome in sorted(outcomes.rejected.items())
    ]
    return CurationReport(
        dataset_digest=dataset_digest(run.folder),
        autoencoder_digest=encoder_digest,
        sources=len(outcomes.sources),
        sources_used=len({row["source_id"] for row in kept}),
        clips_dropped=len(rows) - len(kept),
        **totals(rows),
        retention=round(kept_s / person_s, 4),
        funnel=[item.as_dict() for item in stages],
        rejected=rejected,
        num_retryable=count_retryable(rejected),
        refused_by_ingest=_refused_by_ingest(run.raw),
    )


def count_stages(outcomes: SourceOutcomes, rows: Rows) -> list[Stage]:
    """Return the funnel, from files to kept clips."""
    clips = outcomes.accepted_clips
    track_reasons: Counter[str] = Counter()
    frame_reasons: Counter[str] = Counter()
    for outcome in clips:
        track_reasons.update(outcome["track_reasons"])
        frame_reasons.update(outcome["frame_reasons"])
    no_reference = [row["reason"] for row in rows if row["reason"] in REFERENCE_REASONS]
    missed = [row["reason"] for row in rows if row["reason"] and row["reason"] not in REFERENCE_REASONS]
    return [
        stage("sources", "source", len(outcomes.sources), [item["reason"] for item in outcomes.rejected.values()]),
        stage("people", "track", sum(outcome["people"] for outcome in clips), track_reasons),
        stage("cut", "frame", sum(outcome["person_frames"] for outcome in clips), frame_reasons),
        stage("quality", "clip", len(rows), missed),
        stage("references", "clip", len(rows) - len(missed), no_reference),
    ]


def write_report(run: Run, report: CurationReport, rows: Rows) -> None:
    """Write dataset.json and curation.json, validate the dataset, and write the page over it.

    Raises:
        ValueError: the dataset fails its validation.
    """
    described = {
        "size_px": run.config.size_px,
        "fps": VIDEO_FPS,
        "autoencoder_digest": report.autoencoder_digest,
        "clip_frames": run.config.clip_frames,
        "thresholds": dataclasses.asdict(run.config.active_thresholds),
        **contents(run.folder, rows),
        "scorers": describe_scorers(run.config.scorers),
    }
    write_json(run.folder / "dataset.json", described)
    write_json(run.folder / "curation.json", report)
    tasks = [partial(page, run.folder, rows, dataclasses.asdict(report), described)]
    if run.config.validate:
        tasks.insert(0, partial(validate, rows, run.folder, run.config.clip_frames))
    for task in run.progress.track(tasks, "validation and page"):
        task()


def _refused_by_ingest(raw: Path) -> list[dict[str, str]]:
    listing = raw / "ingest.json"
    rejected = read_json(listing)["rejected"] if listing.is_file() else []
    return [{name: str(item[name]) for name in ("file", "reason")} for item in rejected]
