"""Import closure of a module: the project files that it reaches, digests of their code, and the packages they use."""

import ast
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lpm_model.digests import file_digest

ROOT = Path(__file__).resolve().parents[2]
"""Folder that holds the project's packages."""
PACKAGES = ("lpm_model", "serving", "components")
"""Packages whose sources a step can reach."""
_SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
_SKIPPED_SUFFIXES = {".py", ".pyc", ".md"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeClosure:
    """Everything that a module reaches by import."""

    files: dict[str, str]
    """Path below the root -> digest: of the syntax tree for a source file, of the bytes for any other."""
    names: frozenset[str]
    """Imported top-level names, and string arguments that could be one (as in `find_spec("cv2")`)."""


@cache
def code_closure(module: str, root: Path = ROOT) -> CodeClosure:
    """Return the import closure of a module: its source files, their data files and the names they import.

    Comments, layout, docstrings and help texts are ignored. A data file of a reached package (text, template, weights)
    is included if a string in the reached code contains its name or that of the package's subfolder it is in.

    Args:
        module: dotted name of a module of the project.
        root: folder that holds the packages.
    """
    digests: dict[str, str] = {}
    names: set[str] = set()
    named: set[str] = set()
    packages: list[Path] = []
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        file = _module_file(name, root)
        if name in found or file is None or name.split(".")[0] not in PACKAGES:
            continue
        found.add(name)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        is_package = file.name == "__init__.py"
        imports = list(_imports(tree, name, is_package))
        pending += [name.rpartition(".")[0], *imports]
        names.update(imported.split(".")[0] for imported in imports)
        digests[file.relative_to(root).as_posix()] = _program_digest(tree)
        names.update(_text_arguments(tree))
        named.update(part for text in _texts(tree) for part in text.split("/"))
        if is_package:
            packages.append(file.parent)
    for package in packages:
        digests.update({path.relative_to(root).as_posix(): file_digest(path) for path in _data_files(package, named)})
    return CodeClosure(files=dict(sorted(digests.items())), names=frozenset(names))


def imported_names(closure: CodeClosure, candidates: Collection[str]) -> list[str]:
    """Return the candidates that a closure imports, sorted."""
    return sorted(closure.names.intersection(candidates))


def _module_file(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(tree: ast.AST, name: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                keep = len(parts) - node.level + (1 if is_package else 0)
                base = ".".join([*parts[:keep], *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _text_arguments(tree: ast.AST) -> Iterator[str]:
    """Yield string arguments of calls, which could name a module to import at run time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for value in (*node.args, *(keyword.value for keyword in node.keywords)):
                if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.isidentifier():
                    yield value.value


def _texts(tree: ast.AST) -> Iterator[str]:
    """Yield all string literals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _program_digest(tree: ast.Module) -> str:
    """Return the hex SHA-256 of a syntax tree without docstrings and help texts; changes the tree."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [statement for statement in node.body if not _is_text(statement)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setting":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "help"]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _data_files(package: Path, named: Collection[str]) -> Iterator[Path]:
    """Yield the data files of a package that are named, and all in its named subfolders that are not packages."""
    pending = [package]
    while pending:
        folder = pending.pop()
        for path in folder.iterdir():
            if path.name in _SKIPPED_FOLDERS or path.name.startswith("."):
                continue
            if path.is_dir() and not (path / "__init__.py").exists():
                if folder != package or path.name in named:
                    pending.append(path)
            elif path.is_file() and path.suffix not in _SKIPPED_SUFFIXES and (folder != package or path.name in named):
                yield path
