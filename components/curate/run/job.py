"""Data passed between the stages of a run: the run itself, one source's job, and the outcome of a pass."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from components.curate.config import CurationConfig
from components.curate.run import partial_results
from components.curate.video.probe import SourceRejected
from components.dataset.sources import Source
from components.runtime import heartbeat, part_timing
from lpm_model.progress import Progress

log = logging.getLogger(__name__)

Outcome = dict[str, Any]
"""Plain values: "ok", then what the pass found, or "file", "reason" and "detail" of a rejected source."""
Outcomes = dict[str, Outcome]
"""Outcome of a stage by source id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The job of one source, sent to a worker."""

    raw: Path
    """Corpus folder."""
    parts: Path
    """Folder of partial results, which all workers must see."""
    source: Source
    """The source."""
    config: CurationConfig
    """Settings."""
    copied: tuple[tuple[int, int], ...] = ()
    """Spans of frames that duplicate an earlier source."""
    partner_id: str | None = None
    """Source of the conversation partner's camera."""
    key: str = ""
    """Digest of everything that the result depends on."""
    roi_cache_bytes: float = 0.0
    """Maximum size of the ROI cache that the analysis pass writes for the clip pass (bytes)."""

    @property
    def folder(self) -> Path:
        """The source's folder of partial results."""
        return self.parts / self.source.source_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Folders, settings and progress display of one curation run."""

    raw: Path
    """Corpus folder."""
    folder: Path
    """Working folder that becomes the dataset."""
    config: CurationConfig
    """Settings."""
    progress: Progress
    """Progress display."""

    @property
    def parts(self) -> Path:
        """Folder of partial results."""
        return self.folder / "parts"

    def job(self, source: Source) -> Job:
        """Return the job of one source, without a key."""
        return Job(raw=self.raw, parts=self.parts, source=source, config=self.config)


@dataclass(frozen=True, kw_only=True)
class SourceOutcomes:
    """What happened to every source of a run."""

    sources: list[Source]
    """All listed sources."""
    skipped: Outcomes
    """Sources that were skipped before the passes."""
    analysis: Outcomes
    """Outcomes of the analysis pass."""
    clips: Outcomes
    """Outcomes of the clip pass."""

    @cached_property
    def rejected(self) -> Outcomes:
        """Skipped and failed sources."""
        failed = {name: one for name, one in (self.analysis | self.clips).items() if not one["ok"]}
        return self.skipped | failed

    @cached_property
    def accepted(self) -> list[Source]:
        """Sources that completed both passes."""
        return [source for source in self.sources if source.source_id not in self.rejected]

    @cached_property
    def accepted_clips(self) -> list[Outcome]:
        """Outcomes of the clip pass over the accepted sources."""
        return [self.clips[source.source_id] for source in self.accepted]


def rejection(source: Source, reason: str, detail: str) -> Outcome:
    """Return the outcome of a source that cannot be used."""
    return {"ok": False, "file": source.file, "reason": reason, "detail": detail}


def run_pass(job: Job, stage: str, function: Callable[[Job], Outcome]) -> Outcome:
    """Run a pass over one source, measure its time and store its outcome; an error rejects only this source."""
    started_s = time.monotonic()
    try:
        with part_timing.collect() as seconds_by_part, heartbeat.report_progress(job.folder, job.source.file):
            outcome = {"ok": True, **function(job), "parts_s": seconds_by_part}
    except SourceRejected as error:
        outcome = rejection(job.source, error.reason, error.detail)
    except Exception as error:  # an unexpected error in one file must not abort the run; it is reported by name
        log.exception("%s failed", job.source.file)
        outcome = rejection(job.source, "failed", f"{type(error).__name__}: {error}")
    outcome["seconds"] = round(time.monotonic() - started_s, 3)
    partial_results.finish(job.folder, stage, job.key, outcome)
    return outcome


def worker_lost(job: Job, reason: str, detail: str) -> Outcome:
    """Return the outcome of a source whose worker process ended; a transient failure, so it is not stored."""
    return rejection(job.source, reason, detail)


def earlier_outcome(job: Job, stage: str) -> Outcome | None:
    """Return the stored outcome of a pass that an earlier run has finished; None if the pass has to run."""
    outcome = partial_results.finished(job.folder, stage, job.key)
    return outcome if outcome is None else {**outcome, "reused": True}
