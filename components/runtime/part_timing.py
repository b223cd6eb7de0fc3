"""What each part of a pass costs: seconds by part, added up with two clock readings a call."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_SPENT: ContextVar[dict[str, float] | None] = ContextVar("spent", default=None)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Seconds by part of all that runs inside; filled while it runs."""
    spent: dict[str, float] = {}
    token = _SPENT.set(spent)
    try:
        yield spent
    finally:
        _SPENT.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Count what runs inside for a part; parts don't nest, so that they add up."""
    started_s = time.perf_counter()
    try:
        yield
    finally:
        _add(name, started_s)


def waited(name: str, items: Iterable[T]) -> Iterator[T]:
    """The items; the wait for each is counted for a part, what is done with them is not."""
    rest = iter(items)
    while True:
        started_s = time.perf_counter()
        try:
            item = next(rest)
        except StopIteration:
            return
        finally:
            _add(name, started_s)
        yield item


def _add(name: str, started_s: float) -> None:
    spent = _SPENT.get()
    if spent is not None:
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - started_s


def table(timing: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of pass, part, milliseconds a second of video and share of the pass, from timing.json; dearest first."""
    rows = []
    for name, figures in timing.items():
        total_s, video_s = figures["parts_of_s"], max(figures["video_s"], 1e-9)
        spent = sorted(figures["parts_s"].items(), key=lambda item: -item[1])
        for part_name, seconds in [*spent, ("everything else", total_s - sum(figures["parts_s"].values()))]:
            share = 100 * seconds / max(total_s, 1e-9)
            row = {
                "pass": name,
                "part": part_name,
                "ms": round(1000 * seconds / video_s, 2),
                "percent": round(share, 1),
            }
            rows.append(row)
    return rows
