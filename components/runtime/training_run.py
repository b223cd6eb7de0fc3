"""A training as a step: one MLflow run and one model folder, in as many processes as the settings ask for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from components.runtime.provenance import ModelReport, dataset_version, model_report, resumable, write_provenance
from components.runtime.tracking import StepRun, TrackingConfig, client, step_run
from lpm_model.config import result_settings, to_mapping
from lpm_model.digests import model_digest
from lpm_model.progress import Progress

if TYPE_CHECKING:
    from lpm_model.training.engine.config import Scale


class TrainingSettings(Protocol):
    """Settings that every training has."""

    @property
    def scale(self) -> "Scale":
        """Processes."""
        ...

    @property
    def tracking(self) -> TrackingConfig:
        """MLflow."""
        ...


class Fit(Protocol):
    """The computation of a training; every process calls it."""

    def __call__(
        self, inputs: Mapping[str, Path], folder: Path, config: Any, progress: Progress | None = None, run_id: str = ""
    ) -> dict[str, float]:
        """Train and write a model folder.

        Args:
            inputs: folders by name, as in the step table.
            folder: model folder to write; checkpoints inside it survive a killed process.
            config: settings of the step.
            progress: shows the optimizer steps.
            run_id: MLflow run that receives the curves.

        Returns:
            Metrics.
        """
        ...


def no_metrics(folder: Path) -> dict[str, float]:
    """Add nothing to the model folder and return no metrics: the default of `complete`."""
    return {}


def run_training(
    step: str,
    fit: Fit,
    inputs: Mapping[str, Path],
    model: Path,
    config: TrainingSettings,
    progress: Progress,
    *,
    parent: Path | None,
    complete: Callable[[Path], dict[str, float]] = no_metrics,
) -> ModelReport:
    """Train a model, record the run in MLflow and write its provenance; a killed training resumes.

    Args:
        step: verb; also the prefix of parameters and metrics in MLflow.
        fit: the computation, a function of a module, since several processes may call it.
        inputs: folders by name; `dataset` is among them.
        model: model folder to write.
        config: settings of the step.
        progress: shows the optimizer steps.
        parent: model folder that the training starts from; None for none.
        complete: adds to the trained folder in the main process and returns further metrics.

    Raises:
        ValueError: the inputs do not match each other or the settings.
        RuntimeError: one of several processes failed.
    """
    from lpm_model.training.engine.launch import launch

    dataset = dataset_version(inputs["dataset"])
    parent_digest = model_digest(parent) if parent is not None else ""
    settings = result_settings(config)
    with step_run(step, config.tracking) as run, resumable(model, dataset, parent_digest, settings) as folder:
        run.params({**settings, "scale": to_mapping(config.scale)})
        run.dataset(inputs["dataset"], dataset)
        metrics = launch(fit, config.scale, inputs, folder, config, progress, run.run_id)
        metrics |= complete(folder)
        report = model_report(
            dataset=dataset, parent=parent_digest, settings=settings, metrics=metrics, run_id=run.run_id
        )
        run.metrics(report.metrics)
        lineage = {"dataset_digest": dataset} | ({"parent": parent_digest} if parent_digest else {})
        run.tags({**lineage, "code_commit": report.code_commit, "config_digest": report.config_digest})
        write_provenance(folder, report, settings)
    return report


def attach_run(step: str, config: TrackingConfig, run_id: str) -> StepRun | None:
    """Return the open MLflow run of a training in its main process; None in the others, or without a run."""
    from lpm_model.training.engine.launch import is_main_process

    if not run_id or not is_main_process():
        return None
    return StepRun(client(config.uri), run_id, step, config.tensorboard)
