"""Where sources are worked on: this process, a pool of processes, or Ray Data. One function, the same results."""

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, TypeVar

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Outcome = dict[str, Any]


def run_jobs(
    function: Callable[[Job], Outcome],
    jobs: list[Job],
    *,
    kind: Literal["process", "ray"],
    workers: int,
    died: Callable[[Job], Outcome],
) -> Iterator[tuple[int, Outcome]]:
    """Yield (job number, outcome) as jobs finish.

    Args:
        function: importable by name; takes a job, gives plain values.
        jobs: picklable jobs.
        kind: a pool of processes here, or Ray Data (its workers must see the same folders).
        workers: jobs at once; 1 with kind "process" runs everything in this process.
        died: outcome for a job that takes its worker down twice.
    """
    if not jobs:
        return
    if kind == "ray":
        yield from _with_ray(function, jobs, workers)
    elif workers == 1:
        for number, job in enumerate(jobs):
            yield number, function(job)
    else:
        yield from _with_processes(function, jobs, workers, died)


def _with_processes(
    function: Callable[[Job], Outcome], jobs: list[Job], workers: int, died: Callable[[Job], Outcome]
) -> Iterator[tuple[int, Outcome]]:
    """Spawned processes: safe beside threads. A crash breaks the pool, so what it left is run again one by one."""
    left = set(range(len(jobs)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures: dict[Future[Outcome], int] = {pool.submit(function, job): n for n, job in enumerate(jobs)}
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                log.warning("a worker process died; the remaining sources are worked on one at a time")
                break
            left.discard(futures[future])
            yield futures[future], outcome
    for number in sorted(left):
        with ProcessPoolExecutor(1, mp_context=context) as single:
            try:
                outcome = single.submit(function, jobs[number]).result()
            except BrokenProcessPool:
                outcome = died(jobs[number])
        yield number, outcome


def _with_ray(function: Callable[[Job], Outcome], jobs: list[Job], workers: int) -> Iterator[tuple[int, Outcome]]:
    """Ray Data over the jobs; a cluster is joined where RAY_ADDRESS says so, else one is started here and stopped."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(
            num_cpus=None if "RAY_ADDRESS" in os.environ else workers, include_dashboard=False, log_to_driver=False
        )
    try:

        def work(row: dict[str, Any]) -> dict[str, Any]:
            return {"number": row["number"], "outcome": json.dumps(function(jobs[row["number"]]))}

        rows = ray.data.from_items([{"number": n} for n in range(len(jobs))], override_num_blocks=len(jobs))
        for row in rows.map(work, concurrency=workers).iter_rows():
            yield int(row["number"]), json.loads(row["outcome"])
    finally:
        if started:
            ray.shutdown()
