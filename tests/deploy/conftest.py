"""Small real model folders and an MLflow server backed by one SQLite file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from components.deploy.config import DeployConfig
from components.runtime.tracking import TrackingConfig
from lpm_model.files import write_json

SCORES = {"sync": 0.7, "listening": 0.5, "identity": 0.98, "psnr_db": 31.0, "drift": 0.9}


@pytest.fixture
def config(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> DeployConfig:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return DeployConfig(tracking=TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="test"))


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Make a model folder whose weights are one repeated number."""

    def make(name: str, value: float = 0.0) -> Path:
        folder = tmp_path / name
        (folder / "autoencoder").mkdir(parents=True)
        save_file({"w": np.full(3, value, np.float32)}, folder / "model.safetensors")
        save_file({"w": np.zeros(2, np.float32)}, folder / "autoencoder" / "model.safetensors")
        write_json(folder / "config.json", {"width": 3})
        write_json(folder / "provenance.json", {"dataset_digest": "d" * 64, "parent": "p" * 64, "config_digest": "c"})
        (folder / "README.md").write_text("# Card\n")
        return folder

    return make


@pytest.fixture
def make_report(tmp_path: Path) -> Callable[..., Path]:
    """Write the part of an evaluation report that deploy reads."""

    def make(name: str, **changes: float | None) -> Path:
        folder = tmp_path / name
        write_json(folder / "report.json", {"scores": {**SCORES, **changes}})
        return folder

    return make
