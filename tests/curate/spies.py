"""Stand-ins for functions that a test expects not to be called."""

from collections.abc import Callable
from typing import Any


class UnexpectedCall(BaseException):
    """A function was called that must not be; no error handling of a pass catches it."""


def must_not_be_called(name: str) -> Callable[..., Any]:
    """Return a function that raises `UnexpectedCall`."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise UnexpectedCall(f"{name} was called")

    return fail
