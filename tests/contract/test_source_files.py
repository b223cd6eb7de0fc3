"""Rules for every source file: it imports, is short, is ASCII; rules for pins, file sizes and READMEs."""

import ast
import importlib
import re
import tokenize

import pytest

from tests.contract.project import PACKAGES, ROOT, VERBS, module_name, nodes, project_files, python_files

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E)\b")


@pytest.mark.heavy
@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports(package: str) -> None:
    names = [module_name(path) for path in python_files(package) if path.name != "__main__.py"]
    assert names
    for name in names:
        assert importlib.import_module(name).__name__ == name


def test_files_and_functions_are_short() -> None:
    long = []
    for path in python_files(*PACKAGES, "tests", "docs"):
        text = path.read_text()
        if text.count("\n") + 1 > MAX_FILE_LINES:
            long.append(f"{path.relative_to(ROOT)} has {text.count(chr(10)) + 1} lines")
        for node in nodes(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines")
    assert not long


def test_sources_are_ascii_and_have_no_unfinished_marks() -> None:
    """String literals are exempt: they may contain phonetic letters."""
    bad = []
    for path in python_files(*PACKAGES):
        with path.open("rb") as handle:
            for token in tokenize.tokenize(handle.readline):
                if token.type != tokenize.STRING and (not token.string.isascii() or UNFINISHED.search(token.string)):
                    bad.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string[:60]}")
    assert not bad


def test_pinned_requirements_contain_no_addresses() -> None:
    assert all("://" not in (ROOT / name).read_text() for name in ("constraints.txt", "requirements-nodeps.txt"))


def test_no_large_file_is_tracked() -> None:
    large = [p for p in project_files() if p.stat().st_size > 2_000_000 and "weights" not in p.parts]
    assert not large
    assert sum(p.stat().st_size for p in project_files() if "weights" in p.parts) <= 9_000_000


@pytest.mark.parametrize("folder", [*PACKAGES, "infra", "helm/lpm", "tests", *(f"components/{verb}" for verb in VERBS)])
def test_every_package_has_a_readme(folder: str) -> None:
    assert len((ROOT / folder / "README.md").read_text().splitlines()) >= 5
