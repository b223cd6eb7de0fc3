"""Fixtures and hooks shared by the tests of several packages."""

import fcntl
import os
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

from tests import lanes


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import heavy modules where `-m` leaves all of them out: their imports take seconds."""
    expression = config.option.markexpr
    if not expression or not lanes.is_heavy(collection_path):
        return None
    compiled = Expression.compile(expression)
    possible = (
        compiled.evaluate(lambda name, others=others, **_: name == "heavy" or others) for others in (True, False)
    )
    return None if any(possible) else True


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that tests/lanes.py calls heavy."""
    fixtures = frozenset(getattr(item, "fixturenames", ()))
    if lanes.is_heavy(item.path) or lanes.is_heavy_test(item.nodeid, fixtures):
        item.add_marker(pytest.mark.heavy)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to lay out its tables; once is enough for all test processes of a session."""
    from components.runtime.tracking import client

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path, done = shared / "mlflow.db", shared / "mlflow.done"
    with (shared / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            client(f"sqlite:///{path}").search_experiments()
            done.touch()
    return path
