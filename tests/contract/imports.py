"""Import graph of the packages; lazy imports and imports under TYPE_CHECKING count too."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.contract.project import PACKAGES, ROOT, module_name, nodes, python_files

Graph = Mapping[str, frozenset[str]]


class Import(NamedTuple):
    """One import statement: the line of the importing file and the module it reaches."""

    line: int
    module: str


def imports_of(
    tree: Iterable[ast.AST], module: str, modules: Iterable[str], *, is_package: bool = False
) -> Iterator[Import]:
    """Yield the imports of one file that refer to a module of this project.

    Args:
        tree: all nodes of the file.
        module: dotted name of the file's module; relative imports start from it.
        modules: all modules of this project. `from a import b` reaches `a.b` where that is a module, `a` otherwise.
        is_package: the file is an `__init__.py`.
    """
    known = frozenset(modules)
    for node in tree:
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            for alias in node.names:
                for name in (f"{base}.{alias.name}", base):
                    if name in known:
                        yield Import(node.lineno, name)
                        break


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """Return the dotted name that `from ... import` starts from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


@cache
def import_lines() -> dict[Path, tuple[Import, ...]]:
    """Return the project-internal imports of every source file."""
    files = {path: module_name(path) for path in python_files(*PACKAGES)}
    return {
        path: tuple(imports_of(nodes(path), name, files.values(), is_package=path.name == "__init__.py"))
        for path, name in files.items()
    }


def import_graph() -> dict[str, frozenset[str]]:
    """Return the modules that each module imports, excluding itself."""
    return {
        module_name(path): frozenset(found.module for found in imports) - {module_name(path)}
        for path, imports in import_lines().items()
    }


def import_cycles(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan), each sorted."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def package_graph(parent: str, graph: Graph, packages: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return the import graph between the subpackages directly below a package.

    The parent's own modules (`config.py`, `step.py`) belong to no subpackage: cycles through them appear in the module
    graph.

    Args:
        parent: dotted name of the package; empty for the top level.
        graph: the module graph.
        packages: dotted names of all packages.
    """
    children = {name for name in packages if name.rpartition(".")[0] == parent}

    def subpackage(module: str) -> str | None:
        return next((child for child in children if module == child or module.startswith(f"{child}.")), None)

    edges: dict[str, set[str]] = defaultdict(set)
    for module, imported in graph.items():
        here = subpackage(module)
        if here:
            edges[here] |= {there for name in imported if (there := subpackage(name)) and there != here}
    return {child: frozenset(edges[child]) for child in children}


def folders() -> list[str]:
    """Return the dotted names of all folders that contain sources, and of their parents."""
    names = {path.relative_to(ROOT).parent for path in python_files(*PACKAGES)}
    return sorted({".".join(p.parts) for name in names for p in (name, *name.parents) if p.parts})
