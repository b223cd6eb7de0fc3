"""The two functions that executors map over sources: look at it, then make its clips. Both resume by key."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.curate import parts
from components.curate.analyse import Analysis, analyse
from components.curate.clips import Inputs, SourceClips, make_clips
from components.curate.config import CurationConfig
from components.curate.duplicates import Print, frames_in
from components.curate.encode import load_encoder
from components.curate.manifest import Source, write_rows
from components.curate.pairing import label_source
from components.curate.probe import SourceRejected
from components.curate.scorers import make_scorers
from components.curate.shards import MEMBERS

log = logging.getLogger(__name__)

LOOK, CLIPS = "look", "clips"
"""The stages kept per source."""


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

    @property
    def folder(self) -> Path:
        """The source's part folder."""
        return self.parts / self.source.source_id


def look_key(source: Source, config: CurationConfig) -> str:
    """What the first pass depends on."""
    limits = dataclasses.asdict(config.limits)
    seen = (config.mesh_stride, config.shot_threshold, config.max_faces, config.require_audio)
    made_by = [scorer.passport for scorer in make_scorers(config.scorers)]
    return parts.key_of(dataclasses.asdict(source), limits, seen, made_by)


def clips_key(job: Job, partner_key: str, encoder_digest: str) -> str:
    """What the second pass depends on."""
    config = dataclasses.asdict(job.config)
    for name in ("executor", "workers", "min_retention", "max_retention", "validate", "clips_per_shard"):
        del config[name]
    return parts.key_of(look_key(job.source, job.config), partner_key, config, encoder_digest, job.copied)


def look(job: Job) -> dict[str, Any]:
    """First pass; the outcome says ok or names the reason of the rejection."""
    return _once(job, LOOK, _look)


def _look(job: Job) -> dict[str, Any]:
    analysis = analyse(job.raw, job.source, job.config)
    parts.save_analysis(job.folder / "look.npz", analysis)
    return {"frames": analysis.frames, "people": len(analysis.tracks)}


def fingerprint(job: Job) -> Print:
    """What the finished first pass of a source gives to be compared with the others'."""
    return parts.load_print(job.folder / "look.npz")


def clips(job: Job) -> dict[str, Any]:
    """Second pass; the outcome holds the counts of the funnel."""
    return _once(job, CLIPS, _clips)


def _clips(job: Job) -> dict[str, Any]:
    own = parts.load_analysis(job.folder / "look.npz")
    partner: Analysis | None = None
    if job.partner_id is not None:
        partner = parts.load_analysis(job.parts / job.partner_id / "look.npz")
    labelled = label_source(own, partner, job.config.states)
    found = make_clips(
        Inputs(
            raw=job.raw,
            own=own,
            labelled=labelled,
            partner=partner if labelled.partner is not None else None,
            config=job.config,
            encoder=load_encoder(job.config.autoencoder),
            scorers=make_scorers(job.config.scorers),
            copied=frames_in(job.copied, own.frames),
        )
    )
    _save(job.folder / CLIPS, found)
    return {
        "people": len(own.tracks),
        "person_frames": found.person_frames,
        "track_reasons": found.track_reasons,
        "frame_reasons": found.frame_reasons,
        "unaligned_partner": partner is not None and labelled.partner is None,
    }


def _once(job: Job, stage: str, function: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
    """Reuse a finished stage, else do it; whatever one file does wrong stays with that file."""
    kept = parts.finished(job.folder, stage, job.key)
    if kept is not None:
        return kept
    try:
        outcome = {"ok": True, **function(job)}
    except SourceRejected as error:
        outcome = {"ok": False, "file": job.source.file, "reason": error.reason, "detail": error.detail}
    except Exception as error:  # an unforeseen fault of one file must not take the run down; it is reported by name
        log.exception("%s failed", job.source.file)
        detail = f"{type(error).__name__}: {error}"
        outcome = {"ok": False, "file": job.source.file, "reason": "failed", "detail": detail}
    parts.finish(job.folder, stage, job.key, outcome)
    return outcome


def died(job: Job) -> dict[str, Any]:
    """Outcome of a source that takes its worker process down."""
    detail = "the worker process ended while working on it (decoder crash or out of memory)"
    return {"ok": False, "file": job.source.file, "reason": "worker_died", "detail": detail}


def _save(folder: Path, found: SourceClips) -> None:
    """Rows as Parquet, arrays as .npz, previews as JPEG."""
    import cv2

    from components.common import write_json

    parts.restart(folder)
    write_rows(folder / "rows.parquet", found.rows)
    for clip_id, members in found.members.items():
        np.savez(folder / f"{clip_id}.npz", **{name: members[name] for name in MEMBERS})
        write_json(folder / f"{clip_id}.json", members["json"])
    for clip_id, strip in found.previews.items():
        bgr = cv2.cvtColor(strip, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"{clip_id}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])
