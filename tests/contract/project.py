"""Project files, syntax trees, imports and DVC stages for the contract tests."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipelines.dvc_stages import CODE_STAGE

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lpm_model", "serving", "components", "pipelines")
VERBS = ("ingest", "curate", "train", "distill", "evaluate", "deploy")


@cache
def project_files() -> tuple[Path, ...]:
    """Return the files of the project: those that git does not ignore, or all files of a checkout without git."""
    done = subprocess.run(
        ["git", "--no-optional-locks", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return tuple(ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file())
    skipped = {".venv", ".work", "runs", "workspace", "node_modules"}
    return tuple(p for p in ROOT.rglob("*") if p.is_file() and not skipped & set(p.relative_to(ROOT).parts))


def python_files(*packages: str) -> list[Path]:
    return [p for p in project_files() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in packages]


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a source file."""
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a source file's syntax tree."""
    return tuple(ast.walk(parsed(path)))


def imported_roots(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the top package and the line of every import in a file."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def dvc_stages() -> dict[str, Any]:
    """Return the stages of dvc.yaml that run a step."""
    stages: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage for name, stage in stages.items() if name != CODE_STAGE}


def dvc_edges() -> set[tuple[str, str]]:
    """Return (producer, consumer) pairs of stages: the consumer depends on an output of the producer."""
    producers = {out: name for name, stage in dvc_stages().items() for out in stage["outs"]}
    return {(producers[dep], name) for name, stage in dvc_stages().items() for dep in stage["deps"] if dep in producers}
