"""Every path and link in READMEs and docs/ exists."""

from pathlib import Path

import pytest

from tests.contract.documents import broken_links, broken_paths, documents, named_paths
from tests.contract.project import ROOT

PAGES = documents()


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_paths_exist(page: Path) -> None:
    assert not broken_paths(page.read_text(), page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_are_not_broken(page: Path) -> None:
    assert not broken_links(page.read_text(), page)


def test_named_paths_finds_paths() -> None:
    assert sum(len(list(named_paths(page.read_text()))) for page in PAGES) > 100


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("see `worker.py`", ["worker.py"]),
        ("see `components/runtime/runner.py` and `step.py`", ["step.py"]),
        ("`components/nowhere`, `nowhere/`", ["components/nowhere", "nowhere/"]),
        ("`components/{train,nowhere}/README.md`", ["components/nowhere/README.md"]),
        (
            "```bash\npytest tests/nowhere/test_x.py\nlpm run train.init_from=workspace/x\n```",
            ["tests/nowhere/test_x.py"],
        ),
        ("`s3://bucket/x.yaml`, `nvidia.com/gpu`, `/metrics`, `components/<verb>/config.py`", []),
        ("`runs/latest/report.html`, `summary.json`, `components/*/README.md`, `me.wav`", []),
        ("`never_written.json`", ["never_written.json"]),
        ("| `components/runtime/` | `runner.py` |\n| `components/dataset/` | `runner.py` |", ["runner.py"]),
        ("- `components/runtime/`: `runner.py`, `worker.py`", ["worker.py"]),
    ],
)
def test_broken_paths_are_found(text: str, broken: list[str]) -> None:
    assert broken_paths(text, ROOT / "README.md") == broken


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[home](README.md)", []),
        ("[gone](docs/nowhere.md)", ["docs/nowhere.md"]),
        ("[web](https://example.com/x)", []),
        ("# One title\n[up](#one-title) [down](#another)", ["#another"]),
    ],
)
def test_broken_links_are_found(text: str, broken: list[str]) -> None:
    assert broken_links(text, ROOT / "README.md") == broken
