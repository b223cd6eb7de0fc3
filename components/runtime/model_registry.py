"""MLflow model registry: model folders as versions with lineage tags and the aliases champion and challenger."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.runtime.tracking import StepRun, client, database_file, tracking_uri

CHAMPION = "champion"
CHALLENGER = "challenger"
_FOLDER = "model"
_SCORE = "score."
_DIGEST = "model_digest"


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One registered version."""

    name: str
    """Registered name."""
    version: str
    """Version number in the registry."""
    digest: str
    """Digest of the model folder."""
    source: str
    """URI of the folder."""
    scores: dict[str, float]
    """Scores at registration."""


def find_version(mlflow_client: Any, name: str, digest: str) -> Version | None:
    """Return the version with this digest, or None."""
    versions = mlflow_client.search_model_versions(f"name = '{name}'")
    return next((_version(found) for found in versions if found.tags.get(_DIGEST) == digest), None)


def register(run: StepRun, name: str, folder: Path, digest: str, tags: Mapping[str, str]) -> Version:
    """Upload a model folder to the run and register it."""
    from mlflow.exceptions import MlflowException

    path = f"{_FOLDER}/{name}"
    run.client.log_artifacts(run.run_id, str(folder), artifact_path=path)
    try:
        run.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = run.client.create_model_version(
        name, source=f"{run.artifact_uri}/{path}", run_id=run.run_id, tags={**tags, _DIGEST: digest}
    )
    return _version(made)


def version_by_alias(mlflow_client: Any, name: str, alias: str) -> Version | None:
    """Return the version with an alias, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(mlflow_client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def set_scores(mlflow_client: Any, version: Version, scores: Mapping[str, float]) -> None:
    """Write the scores of a version as tags."""
    for name, value in scores.items():
        mlflow_client.set_model_version_tag(version.name, version.version, f"{_SCORE}{name}", repr(float(value)))


def set_alias(mlflow_client: Any, version: Version, alias: str) -> None:
    """Point an alias at a version; a champion loses the alias challenger."""
    mlflow_client.set_registered_model_alias(version.name, alias, version.version)
    rival = version_by_alias(mlflow_client, version.name, CHALLENGER)
    if alias == CHAMPION and rival is not None and rival.version == version.version:
        mlflow_client.delete_registered_model_alias(version.name, CHALLENGER)


@contextmanager
def download_model(target: str, uri: str = "") -> Iterator[Path]:
    """Yield a temporary folder with the model models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        ValueError: no such model, version or alias.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    place = tracking_uri(uri)
    file = database_file(place)
    if file is not None and not file.is_file():
        raise ValueError(f"{target} cannot be read: {file} is missing; change to its folder, or give --tracking-uri")
    mlflow_client = client(uri)
    name, _, alias = target.removeprefix("models:/").partition("@")
    try:
        if alias:
            version = _version(mlflow_client.get_model_version_by_alias(name, alias))
        else:
            name, _, number = name.partition("/")
            version = _version(mlflow_client.get_model_version(name, number))
    except MlflowException as error:
        raise ValueError(f"{target} is not registered ({error}): `lpm deploy` registers models") from error
    with tempfile.TemporaryDirectory(prefix="lpm-model-") as place:
        yield Path(
            download_artifacts(artifact_uri=version.source, dst_path=place, tracking_uri=mlflow_client.tracking_uri)
        )


def _version(found: Any) -> Version:
    scores = {
        key.removeprefix(_SCORE): float(value) for key, value in dict(found.tags).items() if key.startswith(_SCORE)
    }
    return Version(
        name=found.name,
        version=str(found.version),
        digest=found.tags.get(_DIGEST, ""),
        source=found.source,
        scores=scores,
    )
