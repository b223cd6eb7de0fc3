"""A guarded worker process: a job that crashes, hangs or uses too much memory fails alone."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Outcome = dict[str, Any]

_POLL_S = 0.25
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SPAWN = multiprocessing.get_context("spawn")
_in_worker: list[bool] = []
"""Non-empty in a worker process."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one job."""

    seconds: float = float("inf")
    """Wall time (s)."""
    rss_mb: float = float("inf")
    """Resident memory of its process (MiB)."""


class Worker:
    """A spawned process (safe with threads) that runs one job at a time and is restarted if it has ended."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None
        self._budget = Budget()
        self._started_s = 0.0
        self._ended: tuple[str, str] | None = None

    def begin(self, function: Callable[[Any], Outcome], job: Any, budget: Budget) -> None:
        """Send the process a job; the previous job must be finished."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None
        self._budget, self._ended = budget, None
        self._pipe.send((function, job))
        with contextlib.suppress(EOFError):  # `result` reports a process that has already ended
            self._pipe.recv()  # start-up and imports do not count towards the budget
        self._started_s = time.monotonic()

    def _start(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def waitables(self) -> list[Any]:
        """Objects that become ready when the job is done or the process has ended."""
        return [self._pipe, self._process.sentinel]

    def enforce_budget(self) -> None:
        """Kill the process when its job is over budget."""
        elapsed_s = time.monotonic() - self._started_s
        rss_mb = _rss_mb(self._process.pid)
        if elapsed_s > self._budget.seconds:
            self._ended = ("too_slow", f"it took more than {self._budget.seconds:g} s")
        elif rss_mb > self._budget.rss_mb:
            self._ended = ("too_much_memory", f"it took {rss_mb:.0f} MiB, limit {self._budget.rss_mb:g}")
        if self._ended:
            self._process.kill()
            self._process.join()

    def result(self) -> tuple[Outcome | None, tuple[str, str]]:
        """Return (outcome, ("", "")) of the finished job, or (None, (reason, detail)) if its process has ended."""
        assert self._pipe is not None
        try:
            if self._ended is None and self._pipe.poll():
                outcome: Outcome = self._pipe.recv()
                return outcome, ("", "")
        except EOFError:
            log.debug("the worker closed its pipe")
        self._process.join()
        code = self._process.exitcode
        self._process = None
        if self._ended is None and code == -signal.SIGALRM:
            self._ended = ("too_slow", "the decoder returned no frame within its time limit")
        return None, self._ended or ("worker_died", f"the worker process ended with {code} (crash or out of memory)")

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def first_done(workers: list[Worker]) -> list[Worker]:
    """Wait until at least one worker has finished or died, enforcing budgets meanwhile; return those workers."""
    while True:
        ready = set(wait([item for worker in workers for item in worker.waitables], _POLL_S))
        done = [worker for worker in workers if ready & set(worker.waitables)]
        if done:
            return done
        for worker in workers:
            worker.enforce_budget()


def _rss_mb(pid: int) -> float:
    """Return the resident memory of a process (MiB); 0 when it has just ended or the system does not report it."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * _PAGE / 2**20


def _serve(pipe: Connection) -> None:
    """Run jobs from the pipe and send their outcomes until the parent is gone; Ctrl-C is handled by the parent."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"  # before the libraries that read them are loaded
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _in_worker.append(True)
    cv2.setNumThreads(1)  # one source per worker already: threads within one would compete
    while True:
        try:
            function, job = pipe.recv()
        except EOFError:
            return
        pipe.send("begun")
        pipe.send(function(job))


def _end_with_parent() -> None:
    """Exit when the parent is killed: a surviving worker would write into the folder of the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Kill the worker process by signal if the block takes longer, because a hanging decoder cannot be interrupted.

    Outside a worker process this does nothing.
    """
    if not _in_worker:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
