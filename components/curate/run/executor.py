"""Map a function over jobs in this process, in worker processes or with Ray Data; the results are the same.

Workers on other machines must see the same folders (raw, dataset and autoencoder on a shared file system): jobs hold
paths, and only their outcomes are sent back.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from components.runtime.guarded_worker import Budget, Outcome, Worker, first_done

log = logging.getLogger(__name__)

Job = TypeVar("Job")

Kind = Literal["inline", "process", "ray"]


@dataclass(frozen=True, slots=True)
class Task:
    """A function over jobs with the budget of one job."""

    function: Callable[[Any], Outcome]
    """Importable by name; takes a job, returns plain values."""
    on_worker_lost: Callable[[Any, str, str], Outcome]
    """Returns the outcome of a job whose worker process ended; takes job, reason and detail."""
    budget: Budget = Budget()
    """Time and memory of one job."""


class Executor:
    """Maps functions over jobs; workers are reused between maps and stopped at the end of the `with` block.

    Args:
        kind: "inline" = in this process, one by one, without protection from crashes; "process" = spawned
            processes here; "ray" = Ray Data.
        workers: concurrent jobs.
    """

    def __init__(self, kind: Kind, workers: int) -> None:
        self._kind, self._count = kind, workers
        self._workers: list[Worker] = []
        self._started_ray = False

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        if self._started_ray:
            import ray

            ray.shutdown()

    def map(self, task: Task, jobs: list[Any]) -> Iterator[tuple[int, Outcome]]:
        """Yield (job number, outcome) as jobs finish; at most `workers` jobs run at once."""
        if self._kind == "ray":
            yield from self._with_ray(task, jobs)
        elif self._kind == "inline":
            for number, job in enumerate(jobs):
                yield number, task.function(job)
        else:
            yield from self._with_processes(task, jobs)

    def _with_processes(self, task: Task, jobs: list[Any]) -> Iterator[tuple[int, Outcome]]:
        while len(self._workers) < min(self._count, len(jobs)):
            self._workers.append(Worker())
        waiting = list(enumerate(jobs))[::-1]
        busy: dict[Worker, int] = {}
        while waiting or busy:
            for worker in self._workers:
                if worker not in busy and waiting:
                    busy[worker], job = waiting.pop()
                    worker.begin(task.function, job, task.budget)
            for worker in first_done(list(busy)):
                number = busy.pop(worker)
                outcome, ended = worker.result()
                yield number, task.on_worker_lost(jobs[number], *ended) if outcome is None else outcome

    def _with_ray(self, task: Task, jobs: list[Any]) -> Iterator[tuple[int, Outcome]]:
        """Map with Ray Data, on the cluster at RAY_ADDRESS or else on one that is started here."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        import ray

        if not jobs:
            return
        if not ray.is_initialized():
            cpus = None if "RAY_ADDRESS" in os.environ else self._count
            try:
                ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
            except Exception as error:  # Ray raises bare exceptions of many kinds
                why = next(iter(str(error).splitlines()), type(error).__name__)
                where = f"joined at {os.environ['RAY_ADDRESS']}" if cpus is None else "started here"
                raise ValueError(
                    f"Ray cannot be {where} ({why}): fix that, or set curate.executor=process; then run the same "
                    "command again to resume"
                ) from error
            self._started_ray = True
        # One block per job: each outcome streams back as soon as it exists, and at most `workers` jobs run.
        rows = ray.data.from_items([{"number": n} for n in range(len(jobs))], override_num_blocks=len(jobs))
        # All workers start at once, up to the number of cores of the cluster, which may grow. With all of them running,
        # no job queues behind another while a worker is free; a growing pool scales by the length of its queues.
        workers = min(self._count, len(jobs))
        initial = min(workers, max(int(ray.cluster_resources().get("CPU", 1)), 1))
        queue = 1 if initial == workers else None
        pool = ray.data.ActorPoolStrategy(min_size=initial, max_size=workers, max_tasks_in_flight_per_actor=queue)
        done = rows.map(_RayWorker, fn_constructor_args=(task, jobs), compute=pool, num_cpus=1)
        for row in done.iter_rows():
            yield int(row["number"]), json.loads(row["outcome"])


class _RayWorker:
    """A Ray actor that runs jobs in a guarded subprocess: a crash loses one file, not the run."""

    def __init__(self, task: Task, jobs: list[Any]) -> None:
        self._task, self._jobs = task, jobs
        self._worker = Worker()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        job = self._jobs[row["number"]]
        self._worker.begin(self._task.function, job, self._task.budget)
        first_done([self._worker])
        outcome, ended = self._worker.result()
        if outcome is None:
            outcome = self._task.on_worker_lost(job, *ended)
        return {"number": row["number"], "outcome": json.dumps(outcome)}
