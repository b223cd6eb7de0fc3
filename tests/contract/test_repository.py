"""CI workflows, commit hooks, issue forms, licences and test lanes match the repository."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import lanes
from tests.contract.commands import check, make_targets
from tests.contract.commit_message import AREAS, error_in_message
from tests.contract.project import PACKAGES, ROOT, VERBS, project_files

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LANES = {"lint", "fast", "full", "helm", "cluster"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def workflow_commands(path: Path) -> Iterator[list[str]]:
    """Yield every command that a workflow runs, without pipes, redirections and background marks."""
    for job in load(path)["jobs"].values():
        for step in job["steps"]:
            for line in step.get("run", "").replace("\\\n", " ").splitlines():
                command = re.split(r" \| | > | & ?$", line)[0].strip()
                words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
                if words:
                    yield words


def test_workflows_define_the_expected_jobs() -> None:
    assert {name for path in WORKFLOWS for name in load(path)["jobs"]} == LANES


@pytest.mark.parametrize(
    "words", [words for path in WORKFLOWS for words in workflow_commands(path)], ids=lambda words: " ".join(words)
)
def test_workflow_commands_parse(words: list[str]) -> None:
    check(words)


def test_workflows_are_read_only_and_have_timeouts() -> None:
    for path in WORKFLOWS:
        workflow = load(path)
        assert workflow["permissions"] == {"contents": "read"}
        assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_hooks_are_local_and_their_commands_parse() -> None:
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        check(shlex.split(hook["entry"]))


def test_codeowners_paths_exist() -> None:
    lines = [line for line in (ROOT / ".github" / "CODEOWNERS").read_text().splitlines() if line and line[0] != "#"]
    paths = [line.split()[0] for line in lines]
    assert all(path == "*" or (ROOT / path.strip("/")).is_dir() for path in paths)
    assert {f"/{package}/" for package in PACKAGES} <= set(paths)


def test_issue_forms_are_valid() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for form in map(load, forms):
        assert {"name", "description", "body"} <= set(form)
        assert all("label" in field["attributes"] for field in form["body"])


@pytest.mark.parametrize(
    ("message", "accepted"),
    [
        ("curate: reject clips whose face leaves the crop", True),
        ("curate: reject clips\n\nBecause the crop follows the face.", True),
        ("curate: reject clips\nBecause the crop follows the face.", False),
        ("Reject clips whose face leaves the crop", False),
        ("kitchen: new stove", False),
        (f"model: {'x' * 100}", False),
        ("", False),
        ("Merge branch 'main'", True),
    ],
)
def test_commit_messages_require_an_area(message: str, accepted: bool) -> None:
    assert (error_in_message(message) == "") is accepted


def test_every_step_and_package_has_a_commit_area() -> None:
    assert set(VERBS) <= set(AREAS)
    assert {"model", "serving", "pipelines"} <= set(AREAS)


def test_licence_files_are_packaged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert project["license-files"]
    for name in project["license-files"]:
        assert (ROOT / name).is_file()
        assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_lanes_list_existing_tests() -> None:
    assert [name for name in lanes.HEAVY if not (ROOT / name).exists()] == []
    for name in lanes.HEAVY_TESTS:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(), name
        assert not lanes.is_heavy(ROOT / file), name
    assert {"test-fast", "test", "test-long", "coverage"} <= make_targets()


def test_heavy_test_files_are_a_minority() -> None:
    tests = [p.relative_to(ROOT).as_posix() for p in project_files() if p.match("tests/**/test_*.py")]
    heavy = [name for name in tests if lanes.is_heavy(ROOT / name)]
    assert heavy
    assert len(heavy) < len(tests) / 2
