"""What many rooms' tests need."""

import fcntl
import os
from pathlib import Path

import pytest


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
