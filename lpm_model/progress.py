"""Progress reporting of long tasks: the protocol, and a silent implementation."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Reports the progress of a loop."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        """Yield the items and report each as done.

        Args:
            items: remaining items.
            description: label of the bar.
            total: number of items including those done before; None = the number of `items`.
            done: number of items done before, where the bar starts.
        """
        ...


class NoProgress:
    """Reports nothing: for tests and remote workers."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        yield from items
