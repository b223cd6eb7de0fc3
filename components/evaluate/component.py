"""KFP component of evaluate."""

from kfp import dsl

from components.runtime.container_images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def evaluate(
    config: str,
    model: dsl.Input[dsl.Model],
    base: dsl.Input[dsl.Model],
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    preview: dsl.Output[dsl.HTML],
) -> None:
    """Evaluate the model with LPM-Bench."""
    from components.runtime.kfp_task import run_task

    run_task("evaluate", config, {"model": model.path, "base": base.path}, report, metrics, summary, preview=preview)
