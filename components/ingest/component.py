"""KFP component of ingest."""

from kfp import dsl

from components.runtime.container_images import CURATE_IMAGE


@dsl.component(base_image=CURATE_IMAGE, install_kfp_package=False)
def ingest(
    source: str,
    config: str,
    raw: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Collect source videos with their licence and consent."""
    from components.runtime.kfp_task import run_task

    run_task("ingest", config, {}, raw, metrics, summary, source=source)
