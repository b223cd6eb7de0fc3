"""Import rules: allowed directions between packages, between the folders of components, and no import cycles."""

import ast

import pytest

from tests.contract.imports import (
    Graph,
    Import,
    folders,
    import_cycles,
    import_graph,
    import_lines,
    imports_of,
    package_graph,
)
from tests.contract.project import PACKAGES, ROOT, VERBS, imported_roots, python_files

ALLOWED_IMPORTS = {
    "lpm_model": {"lpm_model"},
    "serving": {"lpm_model", "serving"},
    "components": {"lpm_model", "serving", "components"},
    "pipelines": set(PACKAGES),
}
NOT_IN_MODEL = {"kfp", "mlflow", "kserve", "ray", "kubernetes", "fastapi", "hydra", "omegaconf", "dvc", "minio"}
SHARED_PACKAGES = ("dataset", "runtime", "performer")
"""Folders of components that steps build on; each may import those before it."""


def allowed_packages(package: str) -> set[str]:
    """Return the folders of components that one of them may import, itself included."""
    below = SHARED_PACKAGES[: SHARED_PACKAGES.index(package)] if package in SHARED_PACKAGES else SHARED_PACKAGES
    return {package, *below}


def forbidden_imports(module: str, imports: tuple[Import, ...]) -> list[Import]:
    """Return the imports of a module of components that break the rules between its folders."""
    package = module.split(".")[1]
    reached = [(found, found.module.split(".")) for found in imports]
    return [
        found
        for found, parts in reached
        if parts[0] == "components" and len(parts) > 1 and parts[1] not in allowed_packages(package)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards(package: str) -> None:
    files = python_files(package)
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line in imported_roots(path)
        if name in {*PACKAGES, "tests", "docs"} - ALLOWED_IMPORTS[package]
    ]
    assert files
    assert not broken


def test_model_imports_no_platform() -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in python_files("lpm_model")
        for name, line in imported_roots(path)
        if name in NOT_IN_MODEL
    ]
    assert not broken


def test_components_import_downwards_and_no_step_imports_another() -> None:
    packages_found, broken = set(), []
    for path, imports in import_lines().items():
        parts = path.relative_to(ROOT).parts
        if parts[0] == "components" and len(parts) > 2:
            packages_found.add(parts[1])
            module = ".".join(parts)
            broken += [
                f"{'/'.join(parts)}:{found.line} imports {found.module}" for found in forbidden_imports(module, imports)
            ]
    assert packages_found == {*SHARED_PACKAGES, *VERBS}
    assert not broken


def test_modules_have_no_import_cycle() -> None:
    graph = import_graph()
    assert len(graph) > 200
    assert not import_cycles(graph)


def test_sibling_packages_have_no_import_cycle() -> None:
    graph, packages = import_graph(), folders()
    found = {parent: import_cycles(package_graph(parent, graph, packages)) for parent in ("", *packages)}
    assert {"components", "components.curate", "lpm_model.training", "serving"} <= set(packages)
    assert not {parent: cycles for parent, cycles in found.items() if cycles}


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": frozenset("b"), "b": frozenset("c"), "c": frozenset()}, []),
        ({"a": frozenset("b"), "b": frozenset("a")}, [["a", "b"]]),
        ({"a": frozenset("b"), "b": frozenset("cd"), "c": frozenset("a"), "d": frozenset("e")}, [["a", "b", "c"]]),
    ],
)
def test_import_cycles_finds_each_strongly_connected_component(graph: Graph, expected: list[list[str]]) -> None:
    assert import_cycles(graph) == expected


def test_imports_of_counts_lazy_relative_and_type_imports() -> None:
    source = """
import p.a
from p import b, other
from . import c
from .d import thing
if TYPE_CHECKING:
    from p.e import Type
def lazy():
    from p.f import late
"""
    modules = [f"p.{letter}" for letter in "abcdef"]
    found = {(item.line, item.module) for item in imports_of(ast.walk(ast.parse(source)), "p.here", modules)}
    assert found == {(2, "p.a"), (3, "p.b"), (4, "p.c"), (5, "p.d"), (7, "p.e"), (9, "p.f")}


@pytest.mark.parametrize(
    ("module", "reached", "allowed"),
    [
        ("components.curate.step", "components.dataset.manifest", True),
        ("components.curate.step", "components.curate.video.probe", True),
        ("components.curate.step", "lpm_model.config", True),
        ("components.evaluate.step", "components.ingest.step", False),
        ("components.dataset.manifest", "components.runtime.runner", False),
        ("components.runtime.runner", "components.performer.media", False),
        ("components.performer.media", "components.ingest.step", False),
    ],
)
def test_forbidden_imports_are_found(module: str, reached: str, allowed: bool) -> None:
    assert (forbidden_imports(module, (Import(1, reached),)) == []) is allowed


def test_package_graph_ignores_modules_of_the_parent() -> None:
    graph = {
        "p.step": frozenset({"p.a.x", "p.b.y"}),
        "p.a.x": frozenset({"p.config", "p.b.y"}),
        "p.b.y": frozenset({"p.config"}),
        "p.config": frozenset(),
    }
    packages = ["p", "p.a", "p.b"]
    assert package_graph("p", graph, packages) == {"p.a": frozenset({"p.b"}), "p.b": frozenset()}
    back = {**graph, "p.b.y": frozenset({"p.a.x"})}
    assert import_cycles(package_graph("p", back, packages)) == [["p.a", "p.b"]]
