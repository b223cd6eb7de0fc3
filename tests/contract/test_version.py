"""The version number is defined in pyproject.toml; every other occurrence equals it."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.runtime.container_images import VERSION
from tests.contract.project import ROOT, project_files

OURS = re.compile(r"\blpm/(?:curate|train|serve|mlflow):v?(\d[\w.+-]*)|^ARG VERSION=(\S+)$", re.MULTILINE)
"""A project image with its tag, or the version that a Dockerfile writes into its label."""
EXEMPT = ("tests", "CHANGELOG.md")
"""Paths that may name other versions: examples in tests, earlier releases."""


def version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def tags(text: str) -> set[str]:
    """Return the versions of project images in a text."""
    return {image or label for image, label in OURS.findall(text)}


def tagged_files() -> Iterator[tuple[Path, set[str]]]:
    for path in project_files():
        if path.relative_to(ROOT).parts[0] not in EXEMPT and path.suffix != ".safetensors":
            found = tags(path.read_text(errors="replace"))
            if found:
                yield path, found


def test_images_have_the_project_version() -> None:
    found = dict(tagged_files())
    assert {"infra", "components"} & {path.relative_to(ROOT).parts[0] for path in found}
    assert {path.relative_to(ROOT).as_posix(): names for path, names in found.items() if names != {version()}} == {}


def test_compiled_pipeline_has_the_project_version() -> None:
    golden = (ROOT / "tests" / "pipelines" / "golden.json").read_text()
    assert tags(golden) == {version()}


def test_python_chart_and_page_have_the_project_version() -> None:
    chart = yaml.safe_load((ROOT / "helm" / "lpm" / "Chart.yaml").read_text())
    page = json.loads((ROOT / "serving" / "web" / "package.json").read_text())
    lock = json.loads((ROOT / "serving" / "web" / "package-lock.json").read_text())
    found = {
        "container_images.py": VERSION,
        "Chart.yaml version": chart["version"],
        "Chart.yaml appVersion": chart["appVersion"],
        "package.json": page["version"],
        "package-lock.json": lock["version"],
        "package-lock.json root": lock["packages"][""]["version"],
    }
    assert found == dict.fromkeys(found, version())


def test_changelog_lists_the_version() -> None:
    assert f"## [{version()}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image: lpm/serve:0.1.0\nimage: REGISTRY/lpm/train:0.2.0", {"0.1.0", "0.2.0"}),
        ("ARG VERSION=0.3.0\nARG COMMIT=x", {"0.3.0"}),
        ("image: other/serve:1.0.0", set()),
        ('f"lpm/serve:{VERSION}"', set()),
    ],
)
def test_tags_finds_images_and_labels(text: str, expected: set[str]) -> None:
    assert tags(text) == expected
