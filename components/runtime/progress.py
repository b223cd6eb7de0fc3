"""Progress that crosses a process border: a step writes JSON lines, whoever watches the file draws the bars."""

import json
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

Event = dict[str, Any]
"""One line of progress: {step, description, done, total}, or {step, finished: True, record}."""

_PERIOD_S = 0.2


class FileProgress:
    """Appends one JSON line per change (at most five a second) to a file."""

    def __init__(self, path: Path, step: str) -> None:
        self._path = path
        self._step = step

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        count = total if total is not None else len(items) if isinstance(items, Sized) else None
        self._write(description, done, count)
        last = time.monotonic()
        for item in items:
            yield item
            done += 1
            if time.monotonic() - last >= _PERIOD_S:
                last = time.monotonic()
                self._write(description, done, count)
        self._write(description, done, count)

    def _write(self, description: str, done: int, total: int | None) -> None:
        line = json.dumps({"step": self._step, "description": description, "done": done, "total": total})
        with self._path.open("a") as handle:
            handle.write(line + "\n")


class RichProgress:
    """A bar on the terminal (plain lines are left out where there is no terminal)."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        count = total if total is not None else len(items) if isinstance(items, Sized) else None
        with Progress(*columns) as bar:
            task = bar.add_task(description, total=count, completed=done)
            for item in items:
                yield item
                bar.advance(task)
