"""KFP component of curate."""

from kfp import dsl

from components.runtime.container_images import CURATE_IMAGE


@dsl.component(base_image=CURATE_IMAGE, install_kfp_package=False)
def curate(
    config: str,
    raw: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    preview: dsl.Output[dsl.HTML],
) -> None:
    """Turn raw videos into encoded training clips."""
    from components.runtime.kfp_task import run_task

    run_task("curate", config, {"raw": raw.path}, dataset, metrics, summary, preview=preview)
