"""One worker process under guard: a job that crashes, hangs or eats the memory costs only itself."""

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
_expendable: list[bool] = []
"""Not empty in a worker process."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one job may cost."""

    seconds: float = float("inf")
    """Wall time (s)."""
    rss_mb: float = float("inf")
    """Resident memory of its process (MiB)."""


class Worker:
    """A spawned process (safe beside threads) that does one job at a time; it is started anew after a loss."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None
        self._budget = Budget()
        self._started_s = 0.0
        self._ended: tuple[str, str] | None = None

    def begin(self, function: Callable[[Any], Outcome], job: Any, budget: Budget) -> None:
        """Hand it a job; it must not have one."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None
        self._budget, self._ended = budget, None
        self._pipe.send((function, job))
        with contextlib.suppress(EOFError):  # `result` tells of a process that is lost already
            self._pipe.recv()  # start-up and imports are not the job's to pay
        self._started_s = time.monotonic()

    def _start(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def waits_for(self) -> list[Any]:
        """What becomes ready when the job is done or the process has ended."""
        return [self._pipe, self._process.sentinel]

    def overdrawn(self) -> None:
        """End the process when its job is over budget."""
        taken_s = time.monotonic() - self._started_s
        rss_mb = _rss_mb(self._process.pid)
        if taken_s > self._budget.seconds:
            self._ended = ("too_slow", f"it took more than {self._budget.seconds:g} s")
        elif rss_mb > self._budget.rss_mb:
            self._ended = ("too_much_memory", f"it took {rss_mb:.0f} MiB, limit {self._budget.rss_mb:g}")
        if self._ended:
            self._process.kill()
            self._process.join()

    def result(self) -> tuple[Outcome | None, tuple[str, str]]:
        """(outcome, nothing) of the finished job, or (None, (reason, detail)) where its process has ended."""
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
            self._ended = ("too_slow", "the decoder gave nothing within the time for one picture")
        return None, self._ended or ("worker_died", f"the worker process ended with {code} (crash or out of memory)")

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def first_done(workers: list[Worker]) -> list[Worker]:
    """Wait until some of the workers are done (or lost); meanwhile their budgets are watched."""
    while True:
        ready = set(wait([item for worker in workers for item in worker.waits_for], _POLL_S))
        done = [worker for worker in workers if ready & set(worker.waits_for)]
        if done:
            return done
        for worker in workers:
            worker.overdrawn()


def _rss_mb(pid: int) -> float:
    """Resident memory of a process; 0 when it has just ended or the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * _PAGE / 2**20


def _serve(pipe: Connection) -> None:
    """The worker's life: jobs in, outcomes out, until the other end is gone. Ctrl-C is the parent's to handle."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"  # before the libraries that read it are loaded
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _expendable.append(True)
    cv2.setNumThreads(1)  # sources are worked on side by side: threads within one would wait for each other
    while True:
        try:
            function, job = pipe.recv()
        except EOFError:
            return
        pipe.send("begun")
        pipe.send(function(job))


def _end_with_parent() -> None:
    """A run that is killed leaves no worker behind that would write beside its successor."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """The kernel ends a worker process whose block takes longer, for no exception can leave a decoder that hangs.

    Elsewhere than in a worker nothing happens.
    """
    if not _expendable:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
