"""MLflow tracking: one run per step, in a SQLite file of the working folder unless a server is configured."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpm_model.config import setting
from lpm_model.files import locked


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """MLflow and TensorBoard."""

    uri: str = setting(
        "", help="MLflow tracking URI; empty = MLFLOW_TRACKING_URI, or `mlflow.db` in the working folder."
    )
    experiment: str = setting("lpm", help="MLflow experiment that receives the runs.")
    tensorboard: str = setting(
        "", help="Folder that receives a training's curves as TensorBoard event files too; empty = MLflow alone."
    )


def tracking_uri(uri: str = "") -> str:
    """Return the tracking URI in effect: the given one, that of the environment, or SQLite in the working folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def client(uri: str = "") -> Any:
    """Return an MlflowClient whose model registry is that of the tracking server."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    place = tracking_uri(uri)
    with _exclusive(place):
        return MlflowClient(tracking_uri=place, registry_uri=place)


def database_file(place: str) -> Path | None:
    """Return the SQLite file of a tracking URI, None for a server."""
    return Path(place.removeprefix("sqlite:///")).resolve() if place.startswith("sqlite:///") else None


def _exclusive(place: str) -> AbstractContextManager[None]:
    """Lock a SQLite file while it or an experiment is created, because MLflow does not."""
    file = database_file(place)
    return nullcontext() if file is None else locked(file)


class StepRun:
    """The MLflow run of a step."""

    def __init__(self, mlflow_client: Any, run_id: str, prefix: str, tensorboard: str = "") -> None:
        self.client = mlflow_client
        self.run_id = run_id
        self._prefix, self._tensorboard = prefix, tensorboard

    @property
    def artifact_uri(self) -> str:
        """URI of the run's artifacts."""
        return str(self.client.get_run(self.run_id).info.artifact_uri)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings; nested ones get dotted names."""
        from mlflow.entities import Param

        flat = [Param(f"{self._prefix}.{name}", str(value)[:500]) for name, value in _flat(values)]
        for start in range(0, len(flat), 100):  # MLflow's limit for one batch
            self.client.log_batch(self.run_id, params=flat[start : start + 100])

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Log every number of a (nested) mapping."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(f"{self._prefix}.{name}", value, now, 0) for name, value in numbers_of(values).items()]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def artifact(self, path: Path, folder: str) -> None:
        """Log a file to a folder of the artifacts."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def lightning_loggers(self) -> list[Any]:
        """Return Lightning loggers that log a training's curves to this run, without ending it, and to TensorBoard."""
        from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

        class OpenLogger(MLFlowLogger):
            """MLFlowLogger that does not end the run, which receives more metrics after the training."""

            def finalize(self, status: str = "success") -> None:
                """Leave the run open."""

        loggers: list[Any] = [
            OpenLogger(run_id=self.run_id, tracking_uri=self.client.tracking_uri, prefix=self._prefix)
        ]
        if self._tensorboard:
            loggers.append(TensorBoardLogger(self._tensorboard, name=self._prefix, version=self.run_id))
        return loggers

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        for name, value in values.items():
            self.client.set_tag(self.run_id, name, value)

    def dataset(self, folder: Path, digest: str) -> None:
        """Log the dataset as an input of the run."""
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name="dataset",
            digest=digest[:36],  # MLflow's limit
            source_type="local",
            source=json.dumps({"uri": str(folder), "digest": digest}),
        )
        tag = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset=entity, tags=[tag])])


@contextmanager
def step_run(verb: str, config: TrackingConfig) -> Iterator[StepRun]:
    """Open the run of a step: a new one, or the one in MLFLOW_RUN_ID."""
    mlflow_client = client(config.uri)
    given = os.environ.get("MLFLOW_RUN_ID", "")
    if given:
        yield StepRun(mlflow_client, given, verb, config.tensorboard)
        return
    run = mlflow_client.create_run(_experiment(mlflow_client, config), run_name=verb, tags={"lpm.step": verb})
    try:
        yield StepRun(mlflow_client, run.info.run_id, verb, config.tensorboard)
    except BaseException:
        mlflow_client.set_terminated(run.info.run_id, status="FAILED")
        raise
    mlflow_client.set_terminated(run.info.run_id)


def numbers_of(report: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return every number of a report by its dotted name."""
    found: dict[str, float] = {}
    for key, value in report.items():
        if isinstance(value, Mapping):
            found.update(numbers_of(value, f"{prefix}{key}."))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found


def _experiment(mlflow_client: Any, config: TrackingConfig) -> str:
    place = tracking_uri(config.uri)
    file = database_file(place)
    # Without a server the artifacts are stored next to the database, wherever a step runs.
    location = None if file is None else (file.parent / "mlruns" / config.experiment).as_uri()
    with _exclusive(place):
        found = mlflow_client.get_experiment_by_name(config.experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(mlflow_client.create_experiment(config.experiment, artifact_location=location))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
