"""Wall time of each part of a pass: part -> seconds, summed over all calls."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_SECONDS: ContextVar[dict[str, float] | None] = ContextVar("seconds", default=None)


@contextmanager
def collect() -> Iterator[dict[str, float]]:
    """Yield a mapping part -> seconds that fills while the context is open."""
    seconds: dict[str, float] = {}
    token = _SECONDS.set(seconds)
    try:
        yield seconds
    finally:
        _SECONDS.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Add the time in the context to a part; parts must not be nested, or their sum exceeds the total."""
    started_s = time.perf_counter()
    try:
        yield
    finally:
        _add(name, started_s)


def time_items(name: str, items: Iterable[T]) -> Iterator[T]:
    """Yield the items and add the time to get each one, without the caller's own time, to a part."""
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
    seconds = _SECONDS.get()
    if seconds is not None:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started_s


def table_rows(timing: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of pass, part, milliseconds per second of video and percentage of the pass; the longest part first.

    Args:
        timing: contents of timing.json.
    """
    rows = []
    for name, figures in timing.items():
        total_s, video_s = figures["parts_of_s"], max(figures["video_s"], 1e-9)
        parts = sorted(figures["parts_s"].items(), key=lambda item: -item[1])
        for part_name, seconds in [*parts, ("everything else", total_s - sum(figures["parts_s"].values()))]:
            row = {
                "pass": name,
                "part": part_name,
                "ms": round(1000 * seconds / video_s, 2),
                "percent": round(100 * seconds / max(total_s, 1e-9), 1),
            }
            rows.append(row)
    return rows
