"""The diagrams in docs/ are up to date, and their arrows match the imports."""

import xml.etree.ElementTree as ET

import pytest

from docs import draw, svg
from tests.contract.imports import folders, import_graph, package_graph
from tests.contract.project import PACKAGES
from tests.contract.test_import_rules import SHARED_PACKAGES


@pytest.mark.parametrize("name", draw.DIAGRAMS)
def test_diagrams_are_up_to_date(name: str) -> None:
    drawn = draw.DIAGRAMS[name]().svg()
    assert (draw.DOCS / name).read_text() == drawn, "regenerate it: python -m docs.draw"
    ET.fromstring(drawn)


def test_package_arrows_match_the_imports() -> None:
    graph = package_graph("", import_graph(), folders())
    assert {package: set(graph[package]) for package in PACKAGES} == {k: set(v) for k, v in draw.IMPORTS.items()}


def test_layers_match_the_import_rules() -> None:
    assert tuple(name.rpartition(".")[2] for name in draw.LAYERS) == SHARED_PACKAGES


def test_every_stage_and_curation_call_has_a_text() -> None:
    assert draw.stages() == list(draw.STAGE_TEXTS)
    assert draw.curation_calls() == list(draw.CURATION_TEXTS)


@pytest.mark.parametrize("text", ["one", "two words", "a longer line of several words that has to be broken somewhere"])
def test_wrap_preserves_words_and_respects_the_width(text: str) -> None:
    lines = svg.wrap(text, 120, 12)
    assert " ".join(lines) == text
    assert all(svg.text_width(line, 12) <= 120 for line in lines)


def test_box_rejects_text_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="too small"):
        svg.Drawing(100, 100, "x").box(0, 0, 60, 20, "title", "a body of many words")


def test_unknown_names_and_paths_are_rejected() -> None:
    with pytest.raises(AttributeError):
        draw.name_of("serving.pacing:Pace.nothing")
    with pytest.raises(ValueError, match="does not exist"):
        draw.must_exist("components/nowhere.py")
