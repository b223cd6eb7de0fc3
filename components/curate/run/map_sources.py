"""Map a pass over the sources of a run: skip finished ones, show progress, report rejected sources."""

import logging
from collections.abc import Callable

from components.curate.run.executor import Executor, Task
from components.curate.run.job import Job, Outcome, Outcomes, earlier_outcome
from components.curate.run.partial_results import RETRYABLE
from components.runtime import heartbeat
from lpm_model.progress import Progress

log = logging.getLogger(__name__)


def map_sources(
    executor: Executor,
    stage: str,
    description: str,
    task: Task,
    jobs: list[Job],
    progress: Progress,
    on_outcome: Callable[[Job, Outcome], None] = lambda job, outcome: None,
) -> Outcomes:
    """Map a pass over the jobs that an earlier run has not finished.

    The largest files come first, which keeps a long one from running alone at the end.

    Args:
        executor: where the jobs run.
        stage: name of the pass (see `partial_results`).
        description: label of the progress bar and of log lines.
        task: the pass.
        jobs: one per source.
        progress: progress display.
        on_outcome: called with each new outcome as it arrives.

    Returns:
        The outcome of every job, by source id.
    """
    if not jobs:
        return {}
    outcomes = {job.source.source_id: done for job in jobs if (done := earlier_outcome(job, stage)) is not None}
    for job in jobs:
        if job.source.source_id in outcomes:
            _log_rejection(job, outcomes[job.source.source_id])
    waiting = sorted(
        (job for job in jobs if job.source.source_id not in outcomes),
        key=lambda job: (-job.source.bytes, job.source.source_id),
    )
    results = executor.map(task, waiting)
    try:
        with heartbeat.log_progress(jobs[0].parts, description):
            for number, outcome in progress.track(results, description, total=len(jobs), done=len(outcomes)):
                job = waiting[number]
                outcomes[job.source.source_id] = outcome
                _log_rejection(job, outcome)
                on_outcome(job, outcome)
    except KeyboardInterrupt:
        log.warning(
            "%s: stopped at %d of %d; run the same command again to resume", description, len(outcomes), len(jobs)
        )
        raise
    return outcomes


def _log_rejection(job: Job, outcome: Outcome) -> None:
    if not outcome["ok"]:
        retry = "; run the same command again to retry it" if outcome["reason"] in RETRYABLE else ""
        log.warning("%s is skipped: %s: %s%s", job.source.file, outcome["reason"], outcome["detail"], retry)
