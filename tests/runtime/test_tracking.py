"""MLflow in a SQLite file shared by several commands."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from components.runtime.tracking import TrackingConfig, client, step_run


def _record(config: TrackingConfig) -> str:
    with step_run("train", config) as run:
        run.metrics({"loss": 1.0})
        return run.run_id


@pytest.mark.slow
def test_two_commands_can_create_the_database_concurrently(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="both")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = set(pool.map(_record, [config, config]))
    experiment = client(config.uri).get_experiment_by_name("both")
    found = client(config.uri).search_runs([experiment.experiment_id])
    assert len(runs) == 2
    assert {run.info.run_id for run in found} == runs
    assert {run.info.status for run in found} == {"FINISHED"}
