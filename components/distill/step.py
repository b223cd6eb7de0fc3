"""distill: a Base LPM and its dataset in, the model folder of an Online LPM out."""

from collections.abc import Mapping
from pathlib import Path

from components.distill.characters import write_characters
from components.distill.config import DistillConfig
from components.runtime.provenance import ModelReport
from components.runtime.training_run import attach_run, run_training
from lpm_model.progress import Progress


def distill(base: Path, dataset: Path, model: Path, config: DistillConfig, progress: Progress) -> ModelReport:
    """Distil Base LPM into a causal few-step model, and add default characters.

    Args:
        base: model folder of the teacher.
        dataset: folder that curate wrote.
        model: model folder to write; a killed distillation resumes from its last checkpoint.
        config: settings.
        progress: shows the optimizer steps.

    Raises:
        ValueError: the folders do not match.
        RuntimeError: one of several processes failed.
    """

    def add_characters(folder: Path) -> dict[str, float]:
        return {"characters": float(len(write_characters(dataset, folder)))}

    inputs = {"base": base, "dataset": dataset}
    return run_training("distill", fit, inputs, model, config, progress, parent=base, complete=add_characters)


def fit(
    inputs: Mapping[str, Path], folder: Path, config: DistillConfig, progress: Progress | None = None, run_id: str = ""
) -> dict[str, float]:
    """Distil in this process; the main one logs curves to the MLflow run."""
    from lpm_model.training.distill.train import distill_online

    run = attach_run("distill", config.tracking, run_id)
    logger = run.lightning_loggers() if run else False
    return distill_online(inputs["base"], inputs["dataset"], folder, config, progress, logger=logger)
