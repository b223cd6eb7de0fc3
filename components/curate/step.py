"""The curation step: raw videos in, encoded and documented training clips out. Every stage, in order."""

import shutil
from pathlib import Path

from components.curate.clips.encode import load_encoder
from components.curate.config import CurationConfig
from components.curate.report.curation_report import CurationReport, build_report, write_report
from components.curate.run.analysis_cache import open_cache
from components.curate.run.analysis_pass import analysis_pass
from components.curate.run.assemble import assemble
from components.curate.run.clip_pass import clip_pass
from components.curate.run.executor import Executor
from components.curate.run.job import Run, SourceOutcomes
from components.curate.run.links import link_sources
from components.curate.run.partial_results import retain_for_retry
from components.curate.run.select import skip_sources
from components.curate.run.timing import write_timing
from components.curate.scorers import validate_optional
from components.curate.video.identity import check_identity
from components.dataset.sources import read_sources
from components.dataset.tombstones import TOMBSTONES, Tombstones
from lpm_model.files import staged
from lpm_model.progress import Progress


def curate(
    raw: Path, dataset: Path, config: CurationConfig, progress: Progress, analysis: Path | None = None
) -> CurationReport:
    """Cut, filter, label, caption and encode the videos of a corpus.

    Args:
        raw: folder with sources.jsonl and media/, as ingest writes it.
        dataset: output folder, replaced as a whole when the step succeeds. An interrupted run resumes, and so does one
            that skipped sources for transient failures.
        config: settings.
        progress: progress display.
        analysis: folder of the analysis cache, shared with other runs (see `run.analysis_cache`); None = no cache.

    Returns:
        The report that is also written to dataset/curation.json.

    Raises:
        ValueError: raw is no corpus, a package or weights are missing, no clip is left, the retention is out of bounds,
            or the dataset fails its validation.
    """
    sources = read_sources(raw)
    check_identity(config.identity)
    validate_optional(config.scorers)
    encoder_digest = load_encoder(config.autoencoder).digest
    with staged(dataset, resume=True) as folder:
        run = Run(raw=raw, folder=folder, config=config, progress=progress)
        tombstones = Tombstones(Path(config.tombstones), dataset / TOMBSTONES, folder / TOMBSTONES)
        cache = open_cache(analysis, config.analysis_cache_gb, tombstones.all)

        skipped = skip_sources(sources, config, tombstones)
        selected = [source for source in sources if source.source_id not in skipped]
        with Executor(config.executor, config.workers) as executor:
            analysed = analysis_pass(run, executor, selected, cache)
            usable = [source for source in selected if analysed[source.source_id]["ok"]]
            links = link_sources(run, usable)
            clipped = clip_pass(run, executor, usable, links, encoder_digest)
        outcomes = SourceOutcomes(sources=sources, skipped=skipped, analysis=analysed, clips=clipped)
        write_timing(folder, outcomes)

        rows = assemble(run, outcomes.accepted, tombstones)
        report = build_report(run, outcomes, rows, encoder_digest)
        write_report(run, report, rows)
        if not report.num_retryable:
            shutil.rmtree(run.parts)
    if report.num_retryable:
        retain_for_retry(dataset, sources)
    return report
