"""Where a model comes from: the provenance.json of a model folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.common import read_json, write_json
from components.fingerprint import code_commit, config_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReport:
    """What train and distill did; also written as report.json in the model folder."""

    dataset_digest: str
    """Digest of the dataset."""
    parent: str
    """Digest of the parent's weights; empty for Base LPM."""
    config_digest: str
    """Digest of the settings."""
    code_commit: str
    """Git commit."""
    metrics: dict[str, float]
    """Last values of what the training measures."""
    run_id: str
    """MLflow run."""


def dataset_digest(dataset: Path) -> str:
    """The version of a dataset.

    Raises:
        ValueError: dataset.json is missing or has no digest.
    """
    digest = str(read_json(dataset / "dataset.json").get("digest", ""))
    if not digest:
        raise ValueError(f"{dataset / 'dataset.json'} has no digest: run curate again")
    return digest


def write_provenance(model: Path, report: ModelReport, settings: Mapping[str, Any]) -> None:
    """Add the platform's side of the provenance to what the training wrote, and the report beside it."""
    path = model / "provenance.json"
    known = read_json(path) if path.exists() else {}
    write_json(
        path,
        {
            **known,
            "dataset_digest": report.dataset_digest,
            "parent": report.parent,
            "config_digest": report.config_digest,
            "code_commit": report.code_commit,
            "metrics": {**known.get("metrics", {}), **report.metrics},
            "settings": dict(settings),
        },
    )
    write_json(model / "report.json", report)


def model_report(
    *, dataset: str, parent: str, settings: Mapping[str, Any], metrics: Mapping[str, Any], run_id: str
) -> ModelReport:
    """A report about a model that has just been trained."""
    numbers = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return ModelReport(
        dataset_digest=dataset,
        parent=parent,
        config_digest=config_digest(dict(settings)),
        code_commit=code_commit(),
        metrics=numbers,
        run_id=run_id,
    )
