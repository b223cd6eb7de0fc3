"""Every name in the glossary exists in the code, in the settings, as a command, or as a metric."""

import ast
import re
import shlex
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest

from docs.draw import stages
from pipelines.config import load_config, to_plain
from tests.contract.commands import check_lpm
from tests.contract.project import PACKAGES, ROOT, nodes, python_files

GLOSSARY = ROOT / "docs" / "glossary.md"
COLUMNS = ("paper", "field", "code", "setting", "command or metric")


def rows() -> list[dict[str, str]]:
    lines = [line for line in GLOSSARY.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(COLUMNS, row, strict=True)) for row in cells if row[0] not in {"paper", "---"}]


def names(column: str) -> list[str]:
    """Return the distinct names between backticks in a column."""
    return list(dict.fromkeys(name for row in rows() for name in re.findall(r"`([^`]+)`", row[column])))


@cache
def defined() -> frozenset[str]:
    """Return all names that the sources define: modules, classes, functions, parameters, fields and constants."""
    found: set[str] = set()
    for path in python_files(*PACKAGES):
        found |= {path.stem, *_definitions(nodes(path))}
    return frozenset(found)


def _definitions(tree: Iterable[ast.AST]) -> Iterator[str]:
    for node in tree:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@cache
def source_words() -> frozenset[str]:
    """Return all words in the sources, which include metrics, protocol messages and options."""
    texts = [path.read_text() for path in python_files(*PACKAGES)]
    metrics = {f"{stage}_{name}" for stage in stages() for name in ("loss", "validation_distance", "best_step")}
    metrics |= {f"{role}_conditioning_gap" for role in ("speak", "listen")}
    return frozenset(word for text in texts for word in re.findall(r"[\w.-]+", text)) | metrics


def settings(values: Any, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from settings(value, f"{prefix}{key}.")


def test_glossary_rows_are_complete_and_unique() -> None:
    found = rows()
    assert 60 <= len(found) <= 100
    assert all(any(cell != "-" for cell in row.values()) for row in found)
    assert len({row["field"] for row in found}) == len(found)


@pytest.mark.parametrize("name", names("code"))
def test_names_in_code_exist(name: str) -> None:
    assert name in defined()


@pytest.mark.parametrize("key", names("setting"))
def test_settings_exist(key: str) -> None:
    assert key in set(settings(to_plain(load_config())))


@pytest.mark.parametrize("name", names("command or metric"))
def test_commands_and_metrics_exist(name: str) -> None:
    if name.startswith("lpm "):
        check_lpm(shlex.split(name)[1:])
    else:
        assert name in source_words()


def test_missing_names_are_detected() -> None:
    assert "NoSuchThing" not in defined()
    assert "no_such_metric" not in source_words()
    assert "curate.no_such_setting" not in set(settings(to_plain(load_config())))
