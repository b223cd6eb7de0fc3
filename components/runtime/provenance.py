"""Provenance of a model folder: provenance.json, report.json, and which unfinished training may be resumed."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.runtime.cache_keys import code_commit, config_digest
from lpm_model.files import read_json, staged, working_folder, write_json

_KEY = "resume-key.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReport:
    """Report of train and distill, also written as report.json to the model folder."""

    dataset_digest: str
    """Digest of the dataset."""
    parent: str
    """Digest of the model that the training started from; empty for random weights."""
    config_digest: str
    """Digest of the settings."""
    code_commit: str
    """Git commit."""
    metrics: dict[str, float]
    """Final values."""
    run_id: str
    """MLflow run."""


def dataset_version(dataset: Path) -> str:
    """Return the digest of a dataset.

    Raises:
        ValueError: dataset.json is missing or has no digest.
    """
    digest = str(read_json(dataset / "dataset.json").get("digest", ""))
    if not digest:
        raise ValueError(f"{dataset / 'dataset.json'} has no digest: run curate again")
    return digest


@contextmanager
def resumable(model: Path, dataset: str, parent: str, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a working folder that becomes `model` at the end and is retained if the process is killed.

    A later call resumes in it if dataset, parent and settings are the same; otherwise it starts again.

    Args:
        model: the final folder.
        dataset: digest of the dataset.
        parent: digest of the parent model.
        settings: settings of the training.
    """
    key = config_digest({"dataset": dataset, "parent": parent, "settings": dict(settings)})
    unfinished = working_folder(model)
    if unfinished.exists() and (not (unfinished / _KEY).exists() or (unfinished / _KEY).read_text() != key):
        shutil.rmtree(unfinished)
    with staged(model, resume=True) as work:
        (work / _KEY).write_text(key)
        yield work
        (work / _KEY).unlink()


def write_provenance(model: Path, report: ModelReport, settings: Mapping[str, Any]) -> None:
    """Add digests, commit and settings to the provenance that the training wrote, and write the report."""
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
    """Create the report of a model that has just been trained; metrics that are not numbers are dropped."""
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
