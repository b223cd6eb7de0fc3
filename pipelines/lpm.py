"""The KFP pipeline: six tasks named by their verbs. The same object runs locally and in a cluster."""

import json
from typing import Any

from kfp import dsl

from components.curate.component import curate
from components.deploy.component import deploy
from components.distill.component import distill
from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.runtime.steps import STEPS
from components.train.component import train
from lpm_model.config import to_mapping
from pipelines.config import RootConfig

PARAMETERS = ("source", *(f"{verb}_config" for verb in STEPS))
"""Names of the pipeline's parameters."""


def pipeline_arguments(config: RootConfig) -> dict[str, str]:
    """Return the pipeline's parameters; configs are JSON text, as KFP turns integers inside mappings into floats."""
    texts = {f"{verb}_config": json.dumps(to_mapping(getattr(config, verb)), sort_keys=True) for verb in STEPS}
    return {"source": config.data.source, **texts}


def build_pipeline(config: RootConfig, *, cluster: bool = False) -> Any:
    """Build the pipeline with the values of a config as defaults.

    Args:
        config: defaults, and the resources of each task.
        cluster: set the resources of the tasks, which the local runner ignores.
    """
    defaults = pipeline_arguments(config)

    @dsl.pipeline(name="lpm", description="From raw video to a live character.")
    def lpm(
        source: str = defaults["source"],
        ingest_config: str = defaults["ingest_config"],
        curate_config: str = defaults["curate_config"],
        train_config: str = defaults["train_config"],
        distill_config: str = defaults["distill_config"],
        evaluate_config: str = defaults["evaluate_config"],
        deploy_config: str = defaults["deploy_config"],
    ) -> None:
        raw = ingest(source=source, config=ingest_config)
        dataset = curate(config=curate_config, raw=raw.outputs["raw"])
        base = train(config=train_config, dataset=dataset.outputs["dataset"])
        online = distill(config=distill_config, base=base.outputs["model"], dataset=dataset.outputs["dataset"])
        report = evaluate(config=evaluate_config, model=online.outputs["model"], base=base.outputs["model"])
        release = deploy(
            config=deploy_config,
            model=online.outputs["model"],
            report=report.outputs["report"],
            base=base.outputs["model"],
        )
        if cluster:
            for task in (raw, dataset, base, online, report, release):
                config.resources.apply(task, task.name)

    return lpm
