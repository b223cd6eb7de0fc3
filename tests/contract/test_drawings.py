"""The drawings of docs/ are what the code gives, and their arrows are its imports."""

import xml.etree.ElementTree as ET

import pytest

from docs import draw, svg
from tests.contract.imports import folders, import_graph, rooms
from tests.contract.project import PACKAGES
from tests.contract.test_arrows import SHARED_ROOMS


@pytest.mark.parametrize("name", draw.DRAWINGS)
def test_drawings_are_up_to_date(name: str) -> None:
    drawn = draw.DRAWINGS[name]().svg()
    assert (draw.DOCS / name).read_text() == drawn, "write it again: python -m docs.draw"
    ET.fromstring(drawn)


def test_arrows_between_packages_are_the_imports() -> None:
    graph = rooms("", import_graph(), folders())
    assert {package: set(graph[package]) for package in PACKAGES} == {k: set(v) for k, v in draw.IMPORTS.items()}


def test_layers_are_those_of_the_contract() -> None:
    assert tuple(name.rpartition(".")[2] for name in draw.LAYERS) == SHARED_ROOMS


def test_every_stage_and_call_is_explained() -> None:
    assert draw.stages() == list(draw.STAGE_TEXTS)
    assert draw.curation_calls() == list(draw.CURATION_TEXTS)


@pytest.mark.parametrize("text", ["one", "two words", "a longer line of several words that has to be broken somewhere"])
def test_wrap_keeps_the_words_and_the_width(text: str) -> None:
    lines = svg.wrap(text, 120, 12)
    assert " ".join(lines) == text
    assert all(svg.text_width(line, 12) <= 120 for line in lines)


def test_a_box_refuses_text_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="too small"):
        svg.Drawing(100, 100, "x").box(0, 0, 60, 20, "title", "a body of many words")


def test_unknown_names_and_paths_are_refused() -> None:
    with pytest.raises(AttributeError):
        draw.name_of("serving.pacing:Pace.nothing")
    with pytest.raises(ValueError, match="does not exist"):
        draw.must_exist("components/nowhere.py")
