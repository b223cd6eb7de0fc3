"""Digests that decide whether a step has to run again: its code, its config, its inputs."""

import ast
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lpm_model.digests import file_digest, output_digest

ROOT = Path(__file__).resolve().parents[2]
"""Folder that holds the project's packages."""
PACKAGES = ("lpm_model", "serving", "components")
"""Packages whose sources a step can reach."""
_SKIPPED = {"__pycache__", "node_modules"}
_WITHOUT_EFFECT = {"tracking", "scale", "keep_looks_gb", "keep_pictures_gb"}


@cache
def code_digest(module: str, root: Path = ROOT) -> str:
    """Hex SHA-256 of all project code that a module reaches by import, and of the data files beside it.

    Comments, layout and docstrings do not count; text files, templates and weights do.
    """
    total = hashlib.sha256()
    files = _reachable(module, root)
    for name, path in sorted(files.items()):
        total.update(f"{name}\0{_meaning(path)}\n".encode())
    for path in sorted({data for file in files.values() for data in _data_files(file)}):
        total.update(f"{path.relative_to(root).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


def config_digest(config: dict[str, Any]) -> str:
    """Hex SHA-256 of a config's plain values."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def settings_that_count(config: Mapping[str, Any]) -> dict[str, Any]:
    """A step's settings without those that change where it runs or is recorded, not what it makes."""
    return {name: value for name, value in config.items() if name not in _WITHOUT_EFFECT}


def input_digest(value: Path | str) -> str:
    """Digest of one input of a step; empty when it cannot be known without reading it all (s3://).

    Folders of a run are digested by content. A user's source folder is digested by name, size and time of change,
    because it may hold terabytes.
    """
    if isinstance(value, Path):
        return output_digest(value)
    if "://" in value:
        return ""
    folder = Path(value)
    if not folder.is_dir():
        return hashlib.sha256(value.encode()).hexdigest()
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        total.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return total.hexdigest()


def code_commit(root: Path = ROOT) -> str:
    """Git commit of the running code ("-dirty" with uncommitted changes); LPM_COMMIT inside an image."""
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return os.environ.get("LPM_COMMIT", "unknown")
    if head.returncode != 0:
        return os.environ.get("LPM_COMMIT", "unknown")
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def _module_file(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _reachable(module: str, root: Path) -> dict[str, Path]:
    """Dotted name -> file of every project module in the import closure, packages' __init__ included."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _module_file(name, root)
        if name in found or file is None or name.split(".")[0] not in PACKAGES:
            continue
        found[name] = file
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        waiting.extend(_imports(ast.parse(file.read_text()), name, file.name == "__init__.py"))
    return found


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


def _meaning(path: Path) -> str:
    """The program without comments, layout and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [s for s in node.body if not _is_text(s)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _data_files(module_file: Path) -> Iterator[Path]:
    """Data files of the package that a module belongs to: beside it, and in folders that are no packages."""
    if module_file.name != "__init__.py":
        return
    waiting = [module_file.parent]
    while waiting:
        folder = waiting.pop()
        for path in folder.iterdir():
            if path.name in _SKIPPED or path.name.startswith("."):
                continue
            if path.is_dir() and not (path / "__init__.py").exists():
                waiting.append(path)
            elif path.is_file() and path.suffix not in {".py", ".pyc", ".md"}:
                yield path
