"""Progress bars, and progress across processes: a step appends JSON lines to a file that the parent follows."""

import json
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

Event = dict[str, Any]
"""One line of progress: {step, description, done, total}, or {step, finished: True, record}."""

_WRITE_INTERVAL_S = 0.2


def progress_bars(**options: Any) -> Progress:
    """Return rich progress bars with counts, elapsed and remaining time; options as of `rich.progress.Progress`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, **options)


def _total(items: Iterable[Any], total: int | None) -> int | None:
    return total if total is not None else len(items) if isinstance(items, Sized) else None


class FileProgress:
    """Appends one JSON line per change to a file, at most five per second."""

    def __init__(self, path: Path, step: str) -> None:
        self._path = path
        self._step = step

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        count = _total(items, total)
        self._write(description, done, count)
        last = time.monotonic()
        for item in items:
            yield item
            done += 1
            if time.monotonic() - last >= _WRITE_INTERVAL_S:
                last = time.monotonic()
                self._write(description, done, count)
        self._write(description, done, count)

    def _write(self, description: str, done: int, total: int | None) -> None:
        line = json.dumps({"step": self._step, "description": description, "done": done, "total": total})
        with self._path.open("a") as handle:
            handle.write(line + "\n")


class RichProgress:
    """A progress bar on the terminal; silent without a terminal."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        with progress_bars() as bars:
            task = bars.add_task(description, total=_total(items, total), completed=done)
            for item in items:
                yield item
                bars.advance(task)
