"""KFP component of distill."""

from kfp import dsl

from components.runtime.container_images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def distill(
    config: str,
    base: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Distil Base LPM into Online LPM."""
    from components.runtime.kfp_task import run_task

    run_task("distill", config, {"base": base.path, "dataset": dataset.path}, model, metrics, summary)
