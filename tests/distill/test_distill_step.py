"""The distill step with a real distillation of one step per stage."""

import shutil
from pathlib import Path

import pytest

from components.deploy.release import check_model_folder
from components.distill.config import DistillConfig
from components.distill.step import distill
from components.runtime.tracking import TrackingConfig, client
from components.train.config import TrainConfig
from components.train.step import train
from lpm_model.digests import model_digest
from lpm_model.files import read_json
from lpm_model.progress import NoProgress
from lpm_model.training.distill.config import OdeStage, OnPolicyStage
from tests.lpm_model.training.corpus import MODEL, make_autoencoder, make_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A teacher trained for one step."""
    place = tmp_path_factory.mktemp("distill")
    shutil.copy(empty_database, place / "mlflow.db")
    make_dataset(place / "dataset", make_autoencoder(place / "autoencoder"))
    settings = TrainConfig(
        model=MODEL,
        steps=1,
        batch=1,
        clip_latents=3,
        autoencoder=str(place / "autoencoder"),
        tracking=tracking(place),
    )
    train(place / "dataset", place / "base", settings, NoProgress())
    return place


def tracking(place: Path) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{place / 'mlflow.db'}", experiment="test")


def test_online_model_has_parent_in_provenance_and_mlflow(place: Path) -> None:
    settings = DistillConfig(
        trajectories=2,
        teacher_steps=2,
        batch=1,
        clip_latents=3,
        ode=OdeStage(steps=1),
        on_policy=OnPolicyStage(steps=1, critic_steps=1),
        tracking=tracking(place),
    )
    report = distill(place / "base", place / "dataset", place / "online", settings, NoProgress())
    check_model_folder(place / "online")
    parent = model_digest(place / "base")
    assert report.parent == parent == read_json(place / "online" / "provenance.json")["parent"]
    assert report.parent != model_digest(place / "online")
    mlflow = client(tracking(place).uri)
    run = mlflow.get_run(report.run_id)
    assert run.data.tags["parent"] == parent
    assert any(name.startswith("distill.") for name in run.data.metrics)


def test_base_of_another_autoencoder_is_rejected(place: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "dataset", place / "autoencoder")
    about = read_json(other / "dataset.json")
    (other / "dataset.json").write_text(str(about).replace("'", '"').replace(about["autoencoder_digest"], "0" * 64))
    with pytest.raises(ValueError, match="another autoencoder"):
        distill(place / "base", other, tmp_path / "online", DistillConfig(tracking=tracking(place)), NoProgress())
