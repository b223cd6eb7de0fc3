"""train: a dataset in, the model folder of a Base LPM out."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.runtime.provenance import (
    ModelReport,
    dataset_version,
    model_report,
    resumable,
    write_provenance,
)
from components.runtime.tracking import StepRun, client, step_run
from components.train.config import TrainConfig
from lpm_model.config import result_settings, to_mapping
from lpm_model.digests import model_digest
from lpm_model.progress import Progress

if TYPE_CHECKING:
    from lpm_model.training.base.validation import Show


def train(dataset: Path, model: Path, config: TrainConfig, progress: Progress) -> ModelReport:
    """Train Base LPM, in as many processes as `config.scale` says, and record the run in MLflow.

    Args:
        dataset: folder that curate wrote.
        model: model folder to write; a killed training goes on from its last checkpoint.
        config: settings.
        progress: shows the optimizer steps.

    Raises:
        ValueError: the dataset is empty or was encoded with another autoencoder.
        RuntimeError: one of several processes failed.
    """
    from lpm_model.training.engine.launch import launch

    digest = dataset_version(dataset)
    parent = model_digest(Path(config.init_from)) if config.init_from else ""
    settings = result_settings(config)
    with step_run("train", config.tracking) as run, resumable(model, digest, parent, settings) as work:
        run.params({**settings, "scale": to_mapping(config.scale)})
        run.dataset(dataset, digest)
        metrics = launch(fit, config.scale, dataset, work, config, progress, run.run_id)
        report = model_report(dataset=digest, parent=parent, settings=settings, metrics=metrics, run_id=run.run_id)
        run.metrics(report.metrics)
        run.tags({"dataset_digest": digest, "code_commit": report.code_commit, "config_digest": report.config_digest})
        write_provenance(work, report, settings)
    return report


def fit(
    dataset: Path, work: Path, config: TrainConfig, progress: Progress | None = None, run_id: str = ""
) -> dict[str, float]:
    """What every process of a training does; the first one's curves and videos go to the MLflow run."""
    from lpm_model.training.base.train import train_base
    from lpm_model.training.engine.launch import is_main_process

    tracking = config.tracking
    run = None
    if run_id and is_main_process():
        run = StepRun(client(tracking.uri), run_id, "train", tracking.tensorboard)
    loggers, show = (run.lightning_loggers(), videos_into(run)) if run else (False, None)
    return train_base(dataset, work, config, progress, logger=loggers, save_video=save_video)


def videos_into(run: StepRun) -> "Show":
    """Videos of a validation become files of the run: what the model made on the right, the truth on the left."""
    from serving.media.mp4 import Mp4Writer

    def show(name: str, frames: NDArray[np.uint8], sound: NDArray[np.int16]) -> None:
        with tempfile.TemporaryDirectory(prefix="lpm-validation-") as place:
            path = Path(place) / f"{name}.mp4"
            with Mp4Writer(path, height_px=frames.shape[1], width_px=frames.shape[2]) as writer:
                writer.write(frames, sound)
            run.artifact(path, "validation")

    return show
