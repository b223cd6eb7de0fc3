"""distill: a Base LPM and its dataset in, the model folder of an Online LPM out."""

from pathlib import Path

from components.distill.characters import write_characters
from components.distill.config import DistillConfig
from components.runtime.provenance import (
    ModelReport,
    dataset_version,
    model_report,
    resumable,
    write_provenance,
)
from components.runtime.tracking import StepRun, client, step_run
from lpm_model.config import result_settings, to_mapping
from lpm_model.digests import model_digest
from lpm_model.progress import Progress


def distill(base: Path, dataset: Path, model: Path, config: DistillConfig, progress: Progress) -> ModelReport:
    """Distil a causal few-step model, in as many processes as `config.scale` says, and record the run in MLflow.

    Args:
        base: model folder of the teacher.
        dataset: folder that curate wrote.
        model: model folder to write; a killed run goes on from its last checkpoint.
        config: settings.
        progress: shows the optimizer steps.

    Raises:
        ValueError: the folders do not fit each other.
        RuntimeError: one of several processes failed.
    """
    from lpm_model.training.engine.launch import launch

    digest = dataset_version(dataset)
    parent = model_digest(base)
    settings = result_settings(config)
    with step_run("distill", config.tracking) as run, resumable(model, digest, parent, settings) as work:
        run.params({**settings, "scale": to_mapping(config.scale)})
        run.dataset(dataset, digest)
        metrics = launch(fit, config.scale, base, dataset, work, config, progress, run.run_id)
        metrics["characters"] = float(len(write_characters(dataset, work)))
        report = model_report(dataset=digest, parent=parent, settings=settings, metrics=metrics, run_id=run.run_id)
        run.metrics(report.metrics)
        run.tags(
            {
                "dataset_digest": digest,
                "parent": parent,
                "code_commit": report.code_commit,
                "config_digest": report.config_digest,
            }
        )
        write_provenance(work, report, settings)
    return report


def fit(
    base: Path, dataset: Path, work: Path, config: DistillConfig, progress: Progress | None = None, run_id: str = ""
) -> dict[str, float]:
    """What every process of a distillation does; the first one's curves go to the MLflow run."""
    from lpm_model.training.distill.train import distill_online
    from lpm_model.training.engine.launch import is_main_process

    tracking = config.tracking
    run = None
    if run_id and is_main_process():
        run = StepRun(client(tracking.uri), run_id, "distill", tracking.tensorboard)
    return distill_online(base, dataset, work, config, progress, logger=run.lightning_loggers() if run else False)
