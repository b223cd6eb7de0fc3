"""How far long sources are: workers, wherever they run, leave a few bytes beside their work, and the run reads them."""

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
log.setLevel(logging.INFO)  # who waits for an hour-long source wants to see these lines, whatever else is shown

T = TypeVar("T")

_NAME = "heartbeat.json"
_EVERY_S = 2.0
"""Time between two beats of a worker."""
_SAID_EVERY_S = 30.0
"""Time between two lines of the run; sources that take less are told by the bar alone."""
_DEAD_S = 120.0
"""A beat that is older is that of a worker that was killed."""
_HEART: ContextVar[tuple[Path, str] | None] = ContextVar("heart", default=None)


@contextmanager
def beating(folder: Path, file: str) -> Iterator[None]:
    """Work on one source: what is `counted` inside is told in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    token = _HEART.set((folder / _NAME, file))
    try:
        yield
    finally:
        _HEART.reset(token)
        (folder / _NAME).unlink(missing_ok=True)


def counted(frames: Iterable[T], of: int) -> Iterator[T]:
    """The frames of a source, of which so many are expected."""
    heart = _HEART.get()
    started_s = beat_s = time.monotonic()
    for done, frame in enumerate(frames, 1):
        yield frame
        now_s = time.monotonic()
        if heart is not None and now_s - beat_s >= _EVERY_S:
            beat_s = now_s
            path, file = heart
            write_json(path, {"file": file, "done": done, "of": of, "seconds": round(now_s - started_s, 1)})


@contextmanager
def told(folder: Path, about: str, every_s: float = _SAID_EVERY_S) -> Iterator[None]:
    """While this runs, a line now and then for each source in the folder that is under way."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(every_s):
            for line in lines(folder):
                log.info("%s: %s", about, line)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def lines(folder: Path) -> list[str]:
    """What is under way in the parts of a run: file, share of its frames, time left."""
    found = []
    for path in sorted(folder.glob(f"*/{_NAME}")):
        try:
            beat, age_s = read_json(path), time.time() - path.stat().st_mtime
        except FileNotFoundError:  # done in the meantime
            continue
        if age_s < _DEAD_S and beat["done"]:
            left_s = beat["seconds"] * max(beat["of"] - beat["done"], 0) / beat["done"]
            share = min(100 * beat["done"] / max(beat["of"], 1), 100.0)
            frames = f"{beat['done']} of {beat['of']} frames"
            found.append(f"{beat['file']} {share:.0f} % ({frames}), {left_s / 60:.1f} min left")
    return found
