"""The compiled pipeline against its golden outline, and the settings for a cluster."""

import json
from pathlib import Path

import pytest
import yaml

from components.runtime.container_images import VERSION
from components.runtime.steps import STEPS
from pipelines.compile import compile_pipeline, pipeline_outline
from pipelines.config import load_config
from pipelines.lpm import PARAMETERS, pipeline_arguments

GOLDEN = Path(__file__).parent / "golden.json"
"""Outline of the compiled pipeline: `python -m tests.pipelines.test_compile` writes it again (kfp 2.17.0)."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_pipeline(load_config(), tmp_path_factory.mktemp("compiled") / "lpm.yaml")


def test_outline_equals_the_golden_file(compiled: Path) -> None:
    assert pipeline_outline(compiled) == json.loads(GOLDEN.read_text())


def test_tasks_install_nothing_and_run_in_our_images(compiled: Path) -> None:
    document = yaml.safe_load(compiled.read_text())
    for executor in document["deploymentSpec"]["executors"].values():
        container = executor["container"]
        assert "pip install" not in " ".join(container["command"])
        assert container["image"].startswith("lpm/")
        assert container["image"].endswith(f":{VERSION}")
        assert container["resources"]["resourceMemoryRequest"]


def test_parameters_carry_the_profile(compiled: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(compiled.read_text())
    parameters = document["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == set(PARAMETERS)
    config = load_config(["profile=small", "data.source=s3://videos/a"])
    other = yaml.safe_load(compile_pipeline(config, tmp_path / "small.yaml").read_text())
    values = other["root"]["inputDefinitions"]["parameters"]
    assert values["source"]["defaultValue"] == "s3://videos/a"
    assert json.loads(values["curate_config"]["defaultValue"])["size_px"] == config.curate.size_px
    gpu = other["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]["accelerator"]
    assert gpu["resourceCount"] == "1"


def test_registry_prefixes_every_image(tmp_path: Path) -> None:
    path = compile_pipeline(load_config(), tmp_path / "lpm.yaml", registry="registry.example.com/team/")
    assert {task["image"].rpartition("/lpm/")[0] for task in pipeline_outline(path).values()} == {
        "registry.example.com/team"
    }


def test_arguments_keep_integers() -> None:
    values = pipeline_arguments(load_config())
    assert set(values) == set(PARAMETERS)
    assert isinstance(json.loads(values["curate_config"])["size_px"], int)
    assert len(values) == len(STEPS) + 1


if __name__ == "__main__":
    made = pipeline_outline(compile_pipeline(load_config(), Path("build/golden.yaml")))
    GOLDEN.write_text(json.dumps(made, indent=2, sort_keys=True) + "\n")
