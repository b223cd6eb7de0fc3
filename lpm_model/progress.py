"""How a long task reports progress: one protocol, and a silent implementation."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """How a step says how far it is."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        """Yield the items while showing a bar with the time left.

        Args:
            items: what is left to do.
            description: the bar's name.
            total: how many there are, those done before included; None = as many as the items.
            done: how many were done before: the bar begins there.
        """
        ...


class NoProgress:
    """Silence, for tests and for remote workers."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        yield from items
