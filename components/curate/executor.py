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


class Executor:
    """Maps functions over jobs; what it started is kept between maps and stopped at the end of the `with` block.

    Args:
        kind: "process" = spawned processes here; "ray" = Ray Data, whose workers must see the same folders.
        workers: jobs at once; 1 with kind "process" runs everything in this process.
    """

    def __init__(self, kind: Literal["process", "ray"], workers: int) -> None:
        self._kind, self._workers = kind, workers
        self._pool: ProcessPoolExecutor | None = None
        self._started_ray = False

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._started_ray:
            import ray

            ray.shutdown()

    def map(
        self, function: Callable[[Job], Outcome], jobs: list[Job], died: Callable[[Job], Outcome]
    ) -> Iterator[tuple[int, Outcome]]:
        """Yield (job number, outcome) as jobs finish.

        Args:
            function: importable by name; takes a job, gives plain values.
            jobs: picklable jobs.
            died: outcome for a job that takes its worker process down twice.
        """
        if self._kind == "ray":
            yield from self._with_ray(function, jobs)
        elif self._workers == 1:
            for number, job in enumerate(jobs):
                yield number, function(job)
        else:
            yield from self._with_processes(function, jobs, died)

    def _with_processes(
        self, function: Callable[[Job], Outcome], jobs: list[Job], died: Callable[[Job], Outcome]
    ) -> Iterator[tuple[int, Outcome]]:
        """A crash breaks the pool, so what it left is run again one by one, each in a process of its own."""
        self._pool = self._pool or _processes(self._workers)
        left = set(range(len(jobs)))
        futures: dict[Future[Outcome], int] = {self._pool.submit(function, job): n for n, job in enumerate(jobs)}
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                log.warning("a worker process died; the remaining sources are worked on one at a time")
                self._pool = None
                break
            left.discard(futures[future])
            yield futures[future], outcome
        for number in sorted(left):
            with _processes(1) as single:
                try:
                    outcome = single.submit(function, jobs[number]).result()
                except BrokenProcessPool:
                    outcome = died(jobs[number])
            yield number, outcome

    def _with_ray(self, function: Callable[[Job], Outcome], jobs: list[Job]) -> Iterator[tuple[int, Outcome]]:
        """Ray Data over the jobs; a cluster is joined where RAY_ADDRESS says so, else one is started here."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        import ray

        if not ray.is_initialized():
            cpus = None if "RAY_ADDRESS" in os.environ else self._workers
            ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
            self._started_ray = True
        if not jobs:
            return

        def work(row: dict[str, Any]) -> dict[str, Any]:
            return {"number": row["number"], "outcome": json.dumps(function(jobs[row["number"]]))}

        rows = ray.data.from_items([{"number": n} for n in range(len(jobs))], override_num_blocks=len(jobs))
        for row in rows.map(work, concurrency=self._workers).iter_rows():
            yield int(row["number"]), json.loads(row["outcome"])


def _processes(workers: int) -> ProcessPoolExecutor:
    """Spawned, not forked: safe beside threads."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
