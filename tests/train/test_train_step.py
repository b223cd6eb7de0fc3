"""The train step with a real training of two steps: provenance, MLflow, resuming."""

import shutil
from dataclasses import replace
from pathlib import Path

import av
import pytest

from components.deploy.release import check_model_folder
from components.runtime.provenance import dataset_version, resumable
from components.runtime.tracking import TrackingConfig, client
from components.train.config import TrainConfig
from components.train.step import train
from lpm_model.digests import file_digest
from lpm_model.files import read_json
from lpm_model.progress import NoProgress
from lpm_model.training.base.config import Validation
from serving.media.mp4 import AudioReader
from tests.lpm_model import tiny
from tests.lpm_model.training.corpus import MODEL, make_autoencoder, make_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A trained model with its MLflow run."""
    place = tmp_path_factory.mktemp("train")
    shutil.copy(empty_database, place / "mlflow.db")
    make_dataset(place / "dataset", make_autoencoder(place / "autoencoder"))
    train(place / "dataset", place / "base", config(place), NoProgress())
    return place


def config(place: Path, **changes: object) -> TrainConfig:
    return TrainConfig(
        **{
            "model": MODEL,
            "steps": 2,
            "batch": 2,
            "clip_latents": 3,
            "autoencoder": str(place / "autoencoder"),
            "tracking": TrackingConfig(uri=f"sqlite:///{place / 'mlflow.db'}", experiment="test"),
            **changes,
        }
    )


def test_model_folder_has_provenance(place: Path) -> None:
    check_model_folder(place / "base")
    provenance = read_json(place / "base" / "provenance.json")
    assert provenance["dataset_digest"] == "d" * 64
    assert provenance["settings"]["steps"] == 2
    assert provenance["metrics"]["loss"] > 0
    assert len(provenance["config_digest"]) == 64
    assert provenance["code_commit"]
    assert read_json(place / "base" / "report.json")["metrics"]["clips"] == 3
    assert not list(place.glob(".base*"))


def test_mlflow_run_has_parameters_metrics_and_dataset(place: Path) -> None:
    mlflow = client(config(place).tracking.uri)
    (experiment,) = mlflow.search_experiments(filter_string="name = 'test'")
    (run,) = mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.model.width"] == "32"
    assert run.data.metrics["train.loss"] > 0
    assert run.data.tags["dataset_digest"] == "d" * 64
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == "d" * 36


def test_existing_mlflow_run_is_reused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = client(config(place).tracking.uri)
    given = mlflow.create_run(mlflow.get_experiment_by_name("test").experiment_id, run_name="given")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    report = train(place / "dataset", place / "second", config(place), NoProgress())
    assert report.run_id == given.info.run_id
    assert mlflow.get_run(given.info.run_id).info.status == "RUNNING"
    first, second = (file_digest(place / name / "model.safetensors") for name in ("base", "second"))
    assert first == second


def test_failed_training_is_marked_in_mlflow(place: Path) -> None:
    with pytest.raises(ValueError, match="lower clip_latents"):
        train(place / "dataset", place / "failed", config(place, clip_latents=9), NoProgress())
    mlflow = client(config(place).tracking.uri)
    runs = mlflow.search_runs([mlflow.get_experiment_by_name("test").experiment_id], "attributes.status = 'FAILED'")
    assert len(runs) == 1
    assert not (place / "failed").exists()


def test_only_an_identical_training_is_resumed(tmp_path: Path) -> None:
    model = tmp_path / "model"

    def killed() -> str:
        with resumable(model, "d", "", {"steps": 2}) as work:
            found = (work / "state").read_text() if (work / "state").exists() else "nothing"
            (work / "state").write_text("half way")
            raise KeyboardInterrupt(found)

    with pytest.raises(KeyboardInterrupt, match="nothing"):
        killed()
    with pytest.raises(KeyboardInterrupt, match="half way"):
        killed()
    with resumable(model, "d", "", {"steps": 3}) as work:
        assert not (work / "state").exists()
    assert [path.name for path in model.iterdir()] == []


def test_dataset_without_digest_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing"):
        dataset_version(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match="has no digest"):
        dataset_version(tmp_path)


def test_curves_and_validation_videos_reach_mlflow_and_tensorboard(place: Path, tmp_path: Path) -> None:
    encoder = tiny.write_autoencoder(tmp_path / "autoencoder")
    tracking = replace(config(place).tracking, tensorboard=str(tmp_path / "curves"))
    report = train(
        tiny.write_dataset(tmp_path / "dataset", encoder),
        tmp_path / "base",
        config(
            place, model=tiny.MODEL, autoencoder=str(encoder), crop_steps=0, tracking=tracking, steps=4,
            validation=Validation(every_steps=2, held_out_fraction=0.5, windows=4, videos=2, sampler_steps=2),
        ),
        NoProgress(),
    )  # fmt: skip
    assert {"validation_loss", "speak_conditioning_gap_low", "listen_conditioning_gap_high"} <= set(report.metrics)
    check_model_folder(tmp_path / "base")
    mlflow = client(config(place).tracking.uri)
    curve = mlflow.get_metric_history(report.run_id, "train-validation_loss")
    assert [point.step for point in curve] == [2, 4]
    videos = sorted(item.path for item in mlflow.list_artifacts(report.run_id, "validation"))
    assert videos == [f"validation/step-{step:06d}-{voice}-0.mp4" for step in (2, 4) for voice in ("listen", "speak")]
    video = Path(mlflow.download_artifacts(report.run_id, videos[0], str(tmp_path)))
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
        assert (container.streams.video[0].width, container.streams.video[0].height) == (64, 32)
    assert abs(AudioReader(video).expected_samples - 8000) < 1100  # a frame of AAC
    (events,) = (tmp_path / "curves" / "train" / report.run_id).glob("events.out.tfevents.*")
    assert b"validation_loss" in events.read_bytes()
