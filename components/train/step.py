"""train: a dataset in, the model folder of a Base LPM out."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.runtime.provenance import ModelReport
from components.runtime.tracking import StepRun
from components.runtime.training_run import attach_run, run_training
from components.train.config import TrainConfig
from lpm_model.progress import Progress

if TYPE_CHECKING:
    from lpm_model.training.base.validation import SaveVideo


def train(dataset: Path, model: Path, config: TrainConfig, progress: Progress) -> ModelReport:
    """Train Base LPM.

    Args:
        dataset: folder that curate wrote.
        model: model folder to write; a killed training resumes from its last checkpoint.
        config: settings.
        progress: shows the optimizer steps.

    Raises:
        ValueError: the dataset is empty or was encoded with another autoencoder.
        RuntimeError: one of several processes failed.
    """
    parent = Path(config.init_from) if config.init_from else None
    return run_training("train", fit, {"dataset": dataset}, model, config, progress, parent=parent)


def fit(
    inputs: Mapping[str, Path], folder: Path, config: TrainConfig, progress: Progress | None = None, run_id: str = ""
) -> dict[str, float]:
    """Train in this process; the main one logs curves and validation videos to the MLflow run."""
    from lpm_model.training.base.train import train_base

    run = attach_run("train", config.tracking, run_id)
    logger, save_video = (run.lightning_loggers(), video_artifacts(run)) if run else (False, None)
    return train_base(inputs["dataset"], folder, config, progress, logger=logger, save_video=save_video)


def video_artifacts(run: StepRun) -> "SaveVideo":
    """Return a function that stores validation videos as artifacts: ground truth on the left, model on the right."""
    from serving.media.mp4 import Mp4Writer

    def save(name: str, frames: NDArray[np.uint8], audio: NDArray[np.int16]) -> None:
        with tempfile.TemporaryDirectory(prefix="lpm-validation-") as folder:
            path = Path(folder) / f"{name}.mp4"
            with Mp4Writer(path, height_px=frames.shape[1], width_px=frames.shape[2]) as writer:
                writer.write(frames, audio)
            run.artifact(path, "validation")

    return save
