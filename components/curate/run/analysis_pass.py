"""The analysis pass: decode every source once, measure it, and cache the regions that the clip pass will need."""

import dataclasses
import functools
import shutil

from components.curate.config import CurationConfig, SourceLimits
from components.curate.run import analyse, analysis_file, partial_results
from components.curate.run.analysis_cache import AnalysisCache
from components.curate.run.analysis_file import ANALYSIS_FILE, save_analysis
from components.curate.run.executor import Executor, Task
from components.curate.run.job import Job, Outcome, Outcomes, Run, earlier_outcome, run_pass, worker_lost
from components.curate.run.map_sources import map_sources
from components.curate.scorers import describe_scorers
from components.curate.video.faces import FEATURES
from components.curate.video.roi_cache import RoiCacheWriter
from components.dataset.sources import Source
from components.runtime import part_timing
from components.runtime.cache_keys import code_digest, package_versions
from components.runtime.guarded_worker import Budget

DESCRIPTION = "analysing sources"


def analysis_pass(run: Run, executor: Executor, sources: list[Source], cache: AnalysisCache | None) -> Outcomes:
    """Analyse the sources without a stored or cached result; return the outcome of every source by id."""
    jobs = _jobs(run, sources)
    task = analysis_task(run.config.limits)
    if cache is None:
        return map_sources(executor, partial_results.ANALYSIS, DESCRIPTION, task, jobs, run.progress)
    for job in jobs:
        if earlier_outcome(job, partial_results.ANALYSIS) is None:
            cache.restore(job)
    try:
        return map_sources(executor, partial_results.ANALYSIS, DESCRIPTION, task, jobs, run.progress, cache.store)
    finally:
        cache.evict()


def analysis_key(source: Source, config: CurationConfig) -> str:
    """Return the digest of everything that an analysis depends on: recording, settings, scorers, code and packages."""
    limits = dataclasses.asdict(config.limits)
    settings = (FEATURES, config.mesh_stride, config.shot_threshold, config.max_faces, config.require_audio)
    scorers = describe_scorers(config.scorers)
    return partial_results.key_of(dataclasses.asdict(source), limits, settings, scorers, analysis_code())


@functools.cache
def analysis_code() -> dict[str, tuple[str, dict[str, str]]]:
    """Return the digest of the code and the versions of the packages that shape an analysis, by module."""
    modules = (analyse.__name__, analysis_file.__name__)
    return {module: (code_digest(module), package_versions(module)) for module in modules}


def analysis_task(limits: SourceLimits) -> Task:
    """Return the pass with its budget; memory is limited because the file has never been decoded before."""
    return Task(analyse_source, worker_lost, Budget(limits.max_source_s, limits.max_rss_mb))


def analyse_source(job: Job) -> Outcome:
    """Run the pass over one source; the outcome is ok or names the reason of the rejection."""
    return run_pass(job, partial_results.ANALYSIS, _analyse)


def _analyse(job: Job) -> Outcome:
    with RoiCacheWriter(job.folder, job.config, job.roi_cache_bytes) as writer:
        analysis = analyse.analyse(job.raw, job.source, job.config, writer)
    with part_timing.part("writing analysis"):
        save_analysis(job.folder / ANALYSIS_FILE, analysis)
    return {"frames": analysis.frames, "people": len(analysis.tracks)}


def _jobs(run: Run, sources: list[Source]) -> list[Job]:
    """Return one job per source; the disk space for ROI caches is divided in proportion to file size."""
    room_bytes = min(run.config.roi_cache_gb * 1e9, shutil.disk_usage(run.folder).free / 2)
    per_source_byte = room_bytes / max(sum(source.bytes for source in sources), 1)
    return [
        dataclasses.replace(
            run.job(source),
            key=analysis_key(source, run.config),
            roi_cache_bytes=per_source_byte * source.bytes,
        )
        for source in sources
    ]
