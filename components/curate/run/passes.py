"""The two functions that executors map over sources: look at it, then make its clips. Both resume by key."""

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.curate.captions.vlm import build_captioner
from components.curate.clips.encode import load_encoder
from components.curate.clips.make import Inputs, make_clips
from components.curate.clips.store import ClipStore
from components.curate.config import CurationConfig, SourceLimits, StateConfig
from components.curate.labels.cameras import Recording
from components.curate.labels.offset import Offset
from components.curate.labels.pairing import label_source, align_audio, estimate_av_offset
from components.curate.run import partial_results as parts
from components.curate.run.analyse import STARTING, analyse
from components.curate.run.executor import Task
from components.curate.scorers import COLUMNS, make_scorers, describe_scorers
from components.curate.video.analysis import Analysis
from components.curate.video.duplicates import SourceFingerprint, frames_in
from components.curate.video.faces import FEATURES
from components.curate.video.probe import SourceRejected
from components.curate.video.roi_cache import RoiCache, RoiCacheWriter, discard
from components.dataset.manifest import write_rows
from components.dataset.sources import Source
from components.runtime import heartbeat, part_timing
from components.runtime.cache_keys import code_digest, package_versions
from components.runtime.guarded_worker import Budget
from lpm_model.config import result_settings

log = logging.getLogger(__name__)

PEOPLE = "people.npz"
"""File of a source's people: embeddings [tracks, 128] and spans [tracks, 2]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One source's work; travels to a worker."""

    raw: Path
    """Corpus folder."""
    parts: Path
    """Folder of finished parts, seen by all workers."""
    source: Source
    """The source."""
    config: CurationConfig
    """Settings."""
    copied: tuple[tuple[int, int], ...] = ()
    """Spans of frames that an earlier source shows as well."""
    partner_id: str | None = None
    """Source of the conversation partner's camera."""
    key: str = ""
    """What the result depends on."""
    roi_cache_bytes: float = 0.0
    """Room for pictures that the first pass keeps for the second."""

    @property
    def folder(self) -> Path:
        """The source's part folder."""
        return self.parts / self.source.source_id


def analysis_key(source: Source, config: CurationConfig) -> str:
    """What the first pass depends on: the recording, the settings, the scorers and the code that it reaches."""
    limits = dataclasses.asdict(config.limits)
    seen = (FEATURES, config.mesh_stride, config.shot_threshold, config.max_faces, config.require_audio)
    code = (code_digest(parts.__name__), package_versions(parts.__name__))
    return parts.key_of(dataclasses.asdict(source), limits, seen, describe_scorers(config.scorers), code)


def clips_key(job: Job, partner_key: str, encoder_digest: str) -> str:
    """What the second pass depends on."""
    config = result_settings(job.config, ignore=("assembly",))
    return parts.key_of(analysis_key(job.source, job.config), partner_key, config, encoder_digest, job.copied)


def look(job: Job) -> dict[str, Any]:
    """First pass; the outcome says ok or names the reason of the rejection."""
    return _settled(job, parts.LOOK, _look)


def _look(job: Job) -> dict[str, Any]:
    with RoiCacheWriter(job.folder, job.config, job.roi_cache_bytes) as roi_cache:
        analysis = analyse(job.raw, job.source, job.config, roi_cache)
    with part_timing.part("writing the first pass"):
        parts.save_analysis(job.folder / parts.ANALYSIS, analysis)
    return {"frames": analysis.frames, "people": len(analysis.tracks)}


def fingerprint(job: Job) -> SourceFingerprint:
    """What the finished first pass of a source gives to be compared with the others'."""
    return parts.load_print(job.folder / parts.ANALYSIS)


def recording(job: Job) -> Recording | None:
    """What the finished first pass of a source gives to find its conversation's other camera."""
    return parts.load_recording(job.folder / parts.ANALYSIS)


def clips(job: Job) -> dict[str, Any]:
    """Second pass; the outcome holds the counts of the funnel."""
    outcome = _settled(job, parts.CLIPS, _clips)
    discard(job.folder)
    return outcome


def _clips(job: Job) -> dict[str, Any]:
    partner: Analysis | None = None
    with part_timing.part("reading the first pass"):
        own = parts.load_analysis(job.folder / parts.ANALYSIS)
        if job.partner_id is not None:
            partner = parts.load_analysis(job.parts / job.partner_id / parts.ANALYSIS)
    with part_timing.part(STARTING):
        encoder, captioner = load_encoder(job.config.autoencoder), build_captioner(job.config.captions)
        scorers = make_scorers(job.config.scorers)
    with part_timing.part("offset of the sound"):
        own, av_offset = in_sync(own, job.config.states)
    with part_timing.part("labels"):
        labelled = dataclasses.replace(label_source(own, partner, job.config.states), av_offset=av_offset)
    folder = parts.restart(job.folder / parts.CLIPS)
    found = make_clips(
        Inputs(
            raw=job.raw,
            own=own,
            labelled=labelled,
            partner=partner if labelled.partner is not None else None,
            config=job.config,
            encoder=encoder,
            captioner=captioner,
            scorers=scorers,
            roi_cache=RoiCache(job.folder, own.frames),
            copied=frames_in(job.copied, own.frames),
        ),
        ClipStore(folder),
    )
    with part_timing.part("writing rows"):
        write_rows(folder / "rows.parquet", found.rows, COLUMNS)
        spans = np.array([(track.start, track.stop) for track in own.tracks], np.int64)
        np.savez(folder / PEOPLE, embeddings=found.embeddings, spans=spans)
    return {
        "frames": own.frames,
        "people": len(own.tracks),
        "person_frames": found.person_frames,
        "track_reasons": found.track_reasons,
        "frame_reasons": found.frame_reasons,
        "unaligned_partner": partner is not None and labelled.partner is None,
    }


def in_sync(own: Analysis, config: StateConfig) -> tuple[Analysis, Offset]:
    """A source whose sound fits its pictures, as it is or put right, and how late that sound is.

    Raises:
        SourceRejected: the sound is surely early or late and such sources are left out.
    """
    found = estimate_av_offset(own)
    sure = found.confidence >= config.min_av_offset_confidence and abs(found.frames) > config.max_av_offset_frames
    if config.av_offset == "keep" or not sure:
        return own, found
    if config.av_offset == "shift":
        log.info("%s: the sound is %+d frames late and is moved", own.source.file, found.frames)
        own = align_audio(own, found.frames)
        return own, estimate_av_offset(own)
    detail = f"the sound is {found.frames:+d} frames late; states.av_offset=shift would move it"
    raise SourceRejected(own.source.file, "audio_offset", detail)


def done_before(job: Job, stage: str) -> dict[str, Any] | None:
    """The outcome of a stage that an earlier run has finished, None where it has to be done."""
    outcome = parts.finished(job.folder, stage, job.key)
    return outcome if outcome is None else {**outcome, "reused": True}


def _settled(job: Job, stage: str, function: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
    """Do a stage and leave its outcome beside its files; whatever one file does wrong stays with that file."""
    started_s = time.monotonic()
    try:
        with part_timing.measured() as spent_s, heartbeat.beating(job.folder, job.source.file):
            outcome = {"ok": True, **function(job), "parts_s": spent_s}
    except SourceRejected as error:
        outcome = {"ok": False, "file": job.source.file, "reason": error.reason, "detail": error.detail}
    except Exception as error:  # an unforeseen fault of one file must not take the run down; it is reported by name
        log.exception("%s failed", job.source.file)
        detail = f"{type(error).__name__}: {error}"
        outcome = {"ok": False, "file": job.source.file, "reason": "failed", "detail": detail}
    outcome["seconds"] = round(time.monotonic() - started_s, 3)
    parts.finish(job.folder, stage, job.key, outcome)
    return outcome


def died(job: Job, reason: str, detail: str) -> dict[str, Any]:
    """Outcome of a source that takes its worker process down, or is too slow or too large; a rerun tries it again."""
    return {"ok": False, "file": job.source.file, "reason": reason, "detail": detail}


def task(stage: str, limits: SourceLimits) -> Task:
    """A pass with its budget: memory is bounded while a file nobody has decoded yet is."""
    if stage == parts.LOOK:
        return Task(look, died, Budget(limits.max_source_s, limits.max_rss_mb))
    return Task(clips, died, Budget(limits.max_source_s))
