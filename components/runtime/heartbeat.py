"""Progress within long sources: workers write a heartbeat file next to their results, and the run logs it."""

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
"""Age from which a heartbeat counts as that of a killed worker."""
_HEART: ContextVar[tuple[Path, str] | None] = ContextVar("heart", default=None)


@contextmanager
def beating(folder: Path, file: str) -> Iterator[None]:
    """Write the progress of what is `counted` inside to the source's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    token = _HEART.set((folder / _NAME, file))
    try:
        yield
    finally:
        _HEART.reset(token)
        (folder / _NAME).unlink(missing_ok=True)


def counted(frames: Iterable[T], of: int) -> Iterator[T]:
    """Yield the frames of a source and count them as progress; `of` are expected."""
    heart = _HEART.get()
    started_s = beat_s = time.monotonic()
    for done, frame in enumerate(frames, 1):
        yield frame
        now_s = time.monotonic()
        if heart is not None and now_s - beat_s >= _BEAT_INTERVAL_S:
            beat_s = now_s
            path, file = heart
            write_json(path, {"file": file, "done": done, "of": of, "seconds": round(now_s - started_s, 1)})


@contextmanager
def logged(folder: Path, description: str, interval_s: float = LOG_INTERVAL_S) -> Iterator[None]:
    """Log the progress of every source in the folder at an interval, while the block runs."""
    done = threading.Event()

    def log_progress() -> None:
        while not done.wait(interval_s):
            for line in progress_lines(folder):
                log.info("%s: %s", description, line)

    thread = threading.Thread(target=log_progress, daemon=True)
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
