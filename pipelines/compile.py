"""Compiles the pipeline to KFP's IR YAML, with the values of a config as defaults."""

from pathlib import Path
from typing import Any

import yaml

from pipelines.config import RootConfig
from pipelines.lpm import build_pipeline


def compile_pipeline(config: RootConfig, path: Path, registry: str = "") -> Path:
    """Compile the pipeline for a cluster.

    Args:
        config: parameter defaults and resources.
        path: YAML file to write.
        registry: prefix of the images, such as `registry.example.com/team`.
    """
    from kfp import compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build_pipeline(config, cluster=True), package_path=str(path))
    if registry:
        document = yaml.safe_load(path.read_text())
        for executor in document["deploymentSpec"]["executors"].values():
            executor["container"]["image"] = f"{registry.rstrip('/')}/{executor['container']['image']}"
        path.write_text(yaml.safe_dump(document, sort_keys=True))
    return path


def pipeline_outline(path: Path) -> dict[str, dict[str, Any]]:
    """Return the structure of a compiled pipeline: task -> image, inputs with their producers, outputs."""
    document = yaml.safe_load(path.read_text())
    executors = document["deploymentSpec"]["executors"]
    tasks = {}
    for name, task in sorted(document["root"]["dag"]["tasks"].items()):
        component = document["components"][task["componentRef"]["name"]]
        artifacts = task.get("inputs", {}).get("artifacts", {})
        produced = component.get("outputDefinitions", {}).get("artifacts", {})
        tasks[name] = {
            "image": executors[component["executorLabel"]]["container"]["image"],
            "inputs": {
                key: f"{value['taskOutputArtifact']['producerTask']}.{value['taskOutputArtifact']['outputArtifactKey']}"
                for key, value in sorted(artifacts.items())
            },
            "outputs": {key: value["artifactType"]["schemaTitle"] for key, value in sorted(produced.items())},
        }
    return tasks


def pipeline_edges(path: Path) -> set[tuple[str, str]]:
    """Return the (producer, consumer) pairs of a compiled pipeline."""
    return {
        (source.partition(".")[0], name)
        for name, task in pipeline_outline(path).items()
        for source in task["inputs"].values()
    }
