"""The six verbs are the same six everywhere, and so are the edges between them."""

import inspect
from pathlib import Path

import pytest

from components.runtime.steps import STEPS
from pipelines.cli import cli
from pipelines.compile import compile_pipeline, pipeline_edges, pipeline_outline
from pipelines.config import RootConfig, load_config
from tests.contract.project import ROOT, VERBS, dvc_edges, dvc_stages

LINES_OF_A_COMPONENT = 15


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_pipeline(load_config(), tmp_path_factory.mktemp("compiled") / "lpm.yaml")


def test_table_of_steps_has_the_verbs_in_order() -> None:
    assert tuple(STEPS) == VERBS


def test_cli_has_the_verbs() -> None:
    assert set(VERBS) <= set(cli.commands)


def test_dvc_stages_are_the_verbs() -> None:
    assert tuple(dvc_stages()) == VERBS
    assert all(stage["cmd"].startswith(f"lpm {verb} ") for verb, stage in dvc_stages().items())


def test_component_folders_are_the_verbs() -> None:
    folders = {path.parent.name for path in (ROOT / "components").glob("*/component.py")}
    assert folders == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_tests(verb: str) -> None:
    assert list((ROOT / "tests" / verb).glob("test_*.py"))


def test_pipeline_tasks_are_the_verbs(compiled: Path) -> None:
    assert set(pipeline_outline(compiled)) == set(VERBS)


def test_pipeline_edges_equal_dvc_edges(compiled: Path) -> None:
    assert pipeline_edges(compiled) == dvc_edges()


def test_pipeline_edges_equal_the_step_table() -> None:
    producers = {step.folder: step.verb for step in STEPS.values()}
    table = {(producers[folder], step.verb) for step in STEPS.values() for folder in step.inputs.values()}
    assert table == dvc_edges()


def test_config_has_a_section_for_each_verb() -> None:
    assert set(VERBS) <= set(RootConfig.__dataclass_fields__)


@pytest.mark.parametrize("verb", VERBS)
def test_components_are_thin(verb: str) -> None:
    module = __import__(f"components.{verb}.component", fromlist=[verb])
    body = inspect.getsource(getattr(module, verb).python_func).splitlines()
    start = next(i for i, line in enumerate(body) if line.startswith(("):", ") ->")))
    assert len(body) - start - 1 <= LINES_OF_A_COMPONENT


@pytest.mark.parametrize("verb", VERBS)
def test_step_functions_take_what_the_table_says(verb: str) -> None:
    step = STEPS[verb]
    parameters = inspect.signature(step.function()).parameters
    wanted = {*step.inputs, step.output, "config", "progress", *({"source"} if verb == "ingest" else set())}
    needed = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    assert needed <= wanted <= set(parameters)
    assert getattr(RootConfig(), verb) == step.config_class()()
