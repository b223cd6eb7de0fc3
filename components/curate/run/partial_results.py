"""Partial results per source in the working folder, from which an interrupted run resumes."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from components.curate.video import roi_cache
from components.dataset.sources import Source
from lpm_model.files import read_json, working_folder, write_json

ANALYSIS, CLIPS = "analysis", "clips"
"""The two passes, by the names of their marker files."""
RETRYABLE = frozenset({"failed", "too_slow", "too_much_memory", "worker_died"})
"""Reasons of transient failures: they are not cached, so the next run tries the source again."""


def key_of(*values: Any) -> str:
    """Return the digest of plain values: a partial result is reused only under the same key."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def finished(folder: Path, stage: str, key: str) -> dict[str, Any] | None:
    """Return the outcome of a stage that finished under this key; None if it has to run."""
    marker = folder / f"{stage}.json"
    if not marker.exists():
        return None
    stored: dict[str, Any] = read_json(marker)
    outcome: dict[str, Any] = stored["outcome"]
    return outcome if stored["key"] == key and outcome.get("reason") not in RETRYABLE else None


def finish(folder: Path, stage: str, key: str, outcome: Mapping[str, Any]) -> None:
    """Mark a stage as finished; the marker is written last, after all other files."""
    write_json(folder / f"{stage}.json", {"key": key, "outcome": dict(outcome)})


def empty_folder(folder: Path) -> Path:
    """Create an empty folder for a stage's files; an existing one is deleted."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def retain_for_retry(dataset: Path, sources: Iterable[Source]) -> None:
    """Move a finished dataset's partial results to the folder from which the next run resumes.

    The ROI caches are deleted: they may occupy gigabytes, and that run may never come.
    """
    resumed = empty_folder(working_folder(dataset))
    os.replace(dataset / "parts", resumed / "parts")
    for source in sources:
        roi_cache.discard(resumed / "parts" / source.source_id)
