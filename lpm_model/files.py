"""Atomic folders, links, locks and JSON reports."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a file or folder, which need not exist, for one process at a time, through a hidden file next to it.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def working_folder(final: Path) -> Path:
    """Return the temporary name of an output folder while it is being written."""
    return final.with_name(f".{final.name}.partial")


@contextmanager
def staged(final: Path, *, resume: bool = False) -> Iterator[Path]:
    """Yield a working folder that becomes `final` when the block succeeds.

    Args:
        final: output folder; an existing one is replaced.
        resume: keep the files of a killed run in the working folder instead of starting empty.
    """
    work = working_folder(final)
    if work.exists() and not resume:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    yield work
    if final.exists():
        shutil.rmtree(final)
    os.replace(work, final)


def link_file(source: Path, target: Path) -> None:
    """Hard link a file, or copy it where that is not possible; an existing target is replaced."""
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, partial)
    os.replace(partial, target)
    partial.unlink(missing_ok=True)  # os.replace keeps it if both were links to the same file


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON atomically; dataclasses and paths are allowed."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"cannot write {type(item).__name__} as JSON")

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True, default=plain) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is missing or not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: run the step that writes it first") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete its folder and run the step again") from error
