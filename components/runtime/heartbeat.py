"""Progress within long sources: workers write heartbeat files next to their results, and the run logs them."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from lpm_model.files import read_json, write_json

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # progress of an hour-long source is shown whatever the log level

T = TypeVar("T")

_NAME = "heartbeat.json"
_BEAT_INTERVAL_S = 2.0
"""Time between two heartbeats of a worker."""
LOG_INTERVAL_S = 30.0
"""Time between two log lines; for sources that take less, the progress bar is enough."""
_STALE_S = 120.0
"""Age beyond which a heartbeat is that of a killed worker."""
_HEARTBEAT: ContextVar[tuple[Path, str] | None] = ContextVar("heartbeat", default=None)
"""Heartbeat file of the source in progress, and the name of the source."""


@contextmanager
def report_progress(folder: Path, file: str) -> Iterator[None]:
    """Write the progress of `track_frames` calls inside the context to the source's folder; `file` names the source."""
    folder.mkdir(parents=True, exist_ok=True)
    token = _HEARTBEAT.set((folder / _NAME, file))
    try:
        yield
    finally:
        _HEARTBEAT.reset(token)
        (folder / _NAME).unlink(missing_ok=True)


def track_frames(frames: Iterable[T], of: int) -> Iterator[T]:
    """Yield the frames of a source and write how many of the expected `of` are done."""
    heartbeat = _HEARTBEAT.get()
    started_s = beat_s = time.monotonic()
    for done, frame in enumerate(frames, 1):
        yield frame
        now_s = time.monotonic()
        if heartbeat is not None and now_s - beat_s >= _BEAT_INTERVAL_S:
            beat_s = now_s
            path, file = heartbeat
            write_json(path, {"file": file, "done": done, "of": of, "seconds": round(now_s - started_s, 1)})


@contextmanager
def log_progress(folder: Path, description: str, interval_s: float = LOG_INTERVAL_S) -> Iterator[None]:
    """Log the progress of every source below the folder at an interval while the context is open."""
    done = threading.Event()

    def log_lines() -> None:
        while not done.wait(interval_s):
            for line in progress_lines(folder):
                log.info("%s: %s", description, line)

    thread = threading.Thread(target=log_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def progress_lines(folder: Path) -> list[str]:
    """Return a line for each source in progress: file, percentage of its frames, time left."""
    found = []
    for path in sorted(folder.glob(f"*/{_NAME}")):
        try:
            beat, age_s = read_json(path), time.time() - path.stat().st_mtime
        except FileNotFoundError:  # finished in the meantime
            continue
        if age_s < _STALE_S and beat["done"]:
            left_s = beat["seconds"] * max(beat["of"] - beat["done"], 0) / beat["done"]
            percent = min(100 * beat["done"] / max(beat["of"], 1), 100.0)
            frames = f"{beat['done']} of {beat['of']} frames"
            found.append(f"{beat['file']} {percent:.0f} % ({frames}), {left_s / 60:.1f} min left")
    return found
