"""KFP component of train."""

from kfp import dsl

from components.runtime.container_images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def train(
    config: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Train Base LPM."""
    from components.runtime.kfp_task import run_task

    run_task("train", config, {"dataset": dataset.path}, model, metrics, summary)
