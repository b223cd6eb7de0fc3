"""The clip pass: label every analysed source and cut it into scored, captioned and encoded clips."""

import dataclasses
import logging

import numpy as np

from components.curate.captions.vlm import build_captioner
from components.curate.clips.encode import load_encoder
from components.curate.clips.inputs import Inputs
from components.curate.clips.make import SourceClips, make_clips
from components.curate.clips.store import ClipStore
from components.curate.config import SourceLimits, StateConfig
from components.curate.labels.offset import Offset
from components.curate.labels.pairing import align_audio, estimate_av_offset, label_source
from components.curate.run import partial_results
from components.curate.run.analyse import LOADING_NETWORKS
from components.curate.run.analysis_file import ANALYSIS_FILE, load_analysis
from components.curate.run.analysis_pass import analysis_key
from components.curate.run.executor import Executor, Task
from components.curate.run.job import Job, Outcome, Outcomes, Run, run_pass, worker_lost
from components.curate.run.links import SourceLinks
from components.curate.run.map_sources import map_sources
from components.curate.scorers import COLUMNS, make_scorers
from components.curate.video import roi_cache
from components.curate.video.analysis import Analysis
from components.curate.video.duplicates import frames_in
from components.curate.video.probe import SourceRejected
from components.curate.video.roi_cache import RoiCache
from components.dataset.manifest import write_rows
from components.dataset.sources import Source
from components.runtime import part_timing
from components.runtime.guarded_worker import Budget
from lpm_model.config import result_settings

log = logging.getLogger(__name__)

DESCRIPTION = "making clips"
PEOPLE_FILE = "people.npz"
"""File of a source's people: embeddings float32 [tracks, 128] and spans int64 [tracks, 2]."""
ROWS_FILE = "rows.parquet"
"""File of a source's manifest rows."""


def clip_pass(run: Run, executor: Executor, sources: list[Source], links: SourceLinks, encoder_digest: str) -> Outcomes:
    """Cut every analysed source into clips, using its partner's analysis; return the outcomes by source id."""
    jobs = [_job(run, source, links, encoder_digest) for source in sources]
    return map_sources(executor, partial_results.CLIPS, DESCRIPTION, clip_task(run.config.limits), jobs, run.progress)


def _job(run: Run, source: Source, links: SourceLinks, encoder_digest: str) -> Job:
    partner = links.partners.get(source.source_id)
    job = dataclasses.replace(
        run.job(source),
        copied=links.copied.get(source.source_id, ()),
        partner_id=partner.source_id if partner else None,
    )
    partner_key = analysis_key(partner, run.config) if partner else ""
    return dataclasses.replace(job, key=clips_key(job, partner_key, encoder_digest))


def clips_key(job: Job, partner_key: str, encoder_digest: str) -> str:
    """Return the digest of everything that a source's clips depend on."""
    settings = result_settings(job.config, ignore=("assembly",))
    own_key = analysis_key(job.source, job.config)
    return partial_results.key_of(own_key, partner_key, settings, encoder_digest, job.copied)


def clip_task(limits: SourceLimits) -> Task:
    """Return the pass with its budget."""
    return Task(cut_source, worker_lost, Budget(limits.max_source_s))


def cut_source(job: Job) -> Outcome:
    """Run the pass over one source; the outcome holds the counts of the funnel."""
    outcome = run_pass(job, partial_results.CLIPS, _make_source_clips)
    roi_cache.discard(job.folder)
    return outcome


def _make_source_clips(job: Job) -> Outcome:
    """Read a source's analysis, align its audio, label its people, make its clips and write their rows."""
    partner: Analysis | None = None
    with part_timing.part("reading analysis"):
        analysis = load_analysis(job.folder / ANALYSIS_FILE)
        if job.partner_id is not None:
            partner = load_analysis(job.parts / job.partner_id / ANALYSIS_FILE)
    with part_timing.part(LOADING_NETWORKS):
        encoder, captioner = load_encoder(job.config.autoencoder), build_captioner(job.config.captions)
        scorers = make_scorers(job.config.scorers)
    with part_timing.part("A/V offset"):
        analysis, av_offset = with_aligned_audio(analysis, job.config.states)
    with part_timing.part("labels"):
        labelled = dataclasses.replace(label_source(analysis, partner, job.config.states), av_offset=av_offset)
    store = ClipStore(partial_results.empty_folder(job.folder / partial_results.CLIPS))
    clips = make_clips(
        Inputs(
            raw=job.raw,
            analysis=analysis,
            labelled=labelled,
            partner=partner if labelled.partner is not None else None,
            config=job.config,
            encoder=encoder,
            captioner=captioner,
            scorers=scorers,
            roi_cache=RoiCache(job.folder, analysis.frames),
            copied=frames_in(job.copied, analysis.frames),
        ),
        store,
    )
    with part_timing.part("writing rows"):
        _write_results(job, analysis, clips)
    return {
        "frames": analysis.frames,
        "people": len(analysis.tracks),
        "person_frames": clips.person_frames,
        "track_reasons": clips.track_reasons,
        "frame_reasons": clips.frame_reasons,
        "unaligned_partner": partner is not None and labelled.partner is None,
    }


def _write_results(job: Job, analysis: Analysis, clips: SourceClips) -> None:
    folder = job.folder / partial_results.CLIPS
    write_rows(folder / ROWS_FILE, clips.rows, COLUMNS)
    spans = np.array([(track.start, track.stop) for track in analysis.tracks], np.int64)
    np.savez(folder / PEOPLE_FILE, embeddings=clips.embeddings, spans=spans)


def with_aligned_audio(analysis: Analysis, config: StateConfig) -> tuple[Analysis, Offset]:
    """Return the analysis with aligned audio, shifted if the config allows it, and the estimated offset.

    Raises:
        SourceRejected: the audio is clearly early or late, and `states.av_offset` is "reject".
    """
    found = estimate_av_offset(analysis)
    certain = found.confidence >= config.min_av_offset_confidence and abs(found.frames) > config.max_av_offset_frames
    if config.av_offset == "keep" or not certain:
        return analysis, found
    if config.av_offset == "shift":
        log.info("%s: the audio is %+d frames late and is shifted", analysis.source.file, found.frames)
        analysis = align_audio(analysis, found.frames)
        return analysis, estimate_av_offset(analysis)
    detail = f"the audio is {found.frames:+d} frames late; states.av_offset=shift would move it"
    raise SourceRejected(analysis.source.file, "audio_offset", detail)
