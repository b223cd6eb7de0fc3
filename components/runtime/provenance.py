"""Where a model comes from: the provenance.json of a model folder."""

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


def dataset_version(dataset: Path) -> str:
    """The version of a dataset.

    Raises:
        ValueError: dataset.json is missing or has no digest.
    """
    digest = str(read_json(dataset / "dataset.json").get("digest", ""))
    if not digest:
        raise ValueError(f"{dataset / 'dataset.json'} has no digest: run curate again")
    return digest


@contextmanager
def resumable(model: Path, dataset: str, parent: str, settings: Mapping[str, Any]) -> Iterator[Path]:
    """A working folder that becomes `model` at the end and is kept when the process is killed.

    A later call goes on in it only if it would train the same thing.

    Args:
        model: the final folder.
        dataset: digest of the dataset.
        parent: digest of the parent's weights.
        settings: of the training.
    """
    key = config_digest({"dataset": dataset, "parent": parent, "settings": dict(settings)})
    left = working_folder(model)
    if left.exists() and (not (left / _KEY).exists() or (left / _KEY).read_text() != key):
        shutil.rmtree(left)
    with staged(model, resume=True) as work:
        (work / _KEY).write_text(key)
        yield work
        (work / _KEY).unlink()


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
