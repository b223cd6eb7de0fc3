"""KFP component of deploy."""

from kfp import dsl

from components.runtime.container_images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def deploy(
    config: str,
    model: dsl.Input[dsl.Model],
    report: dsl.Input[dsl.Artifact],
    base: dsl.Input[dsl.Model],
    release: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Register the model, apply the promotion rule and write the release folder."""
    from components.runtime.kfp_task import run_task

    folders = {"model": model.path, "report": report.path, "base": base.path}
    run_task("deploy", config, folders, release, metrics, summary)
