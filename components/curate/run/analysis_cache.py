"""First passes kept for later runs: another threshold, or another file beside them, needs no second look at a source.

Each lies in a folder of the cache, named by all that it depends on; no dataset holds any of it. Only the run itself
reads and writes there, never its workers, who may not see it.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curate.run import partial_results
from components.curate.video.roi_cache import discard
from components.dataset.tombstones import Tombstone
from lpm_model.digests import file_digest
from lpm_model.files import link_file, locked, read_json, write_json

if TYPE_CHECKING:
    from components.curate.run.passes import Job

_SOURCE = "source.json"
"""The line of sources.jsonl whose first pass it is."""


@dataclass(frozen=True, slots=True)
class KeptLooks:
    """A folder of first passes."""

    folder: Path
    """Where they lie; need not exist."""
    most_bytes: float
    """What may lie there after `trim`."""

    def give(self, job: "Job") -> None:
        """Put what is kept of a source's first pass among the parts of a run, if its file is still the same."""
        entry, file = self.folder / job.key, job.raw / job.source.file
        if not entry.is_dir() or not file.is_file() or file_digest(file) != job.source.sha256:
            return
        with locked(self.folder):
            outcome = partial_results.finished(entry, partial_results.LOOK, job.key)
            if outcome is None:
                return
            os.utime(entry)
            discard(job.folder)  # if there is anything, another file's first pass has left it
            if outcome["ok"]:
                job.folder.mkdir(parents=True, exist_ok=True)
                link_file(entry / partial_results.ANALYSIS, job.folder / partial_results.ANALYSIS)
        partial_results.finish(job.folder, partial_results.LOOK, job.key, outcome)

    def keep(self, job: "Job", outcome: dict[str, Any]) -> None:
        """Take in a first pass that was just done; one without a digest of its file could not be told from others."""
        if not job.source.sha256 or outcome.get("reason") in partial_results.PASSING:
            return
        entry = self.folder / job.key
        with locked(self.folder):
            entry.mkdir(exist_ok=True, parents=True)
            write_json(entry / _SOURCE, job.source)
            if outcome["ok"]:
                link_file(job.folder / partial_results.ANALYSIS, entry / partial_results.ANALYSIS)
            partial_results.finish(entry, partial_results.LOOK, job.key, outcome)
            os.utime(entry)

    def trim(self) -> None:
        """Delete those that were not asked for the longest, until the rest is small enough."""
        if not self.folder.is_dir():
            return
        with locked(self.folder):
            entries = sorted(
                filter(Path.is_dir, self.folder.iterdir()), key=lambda entry: entry.stat().st_mtime, reverse=True
            )
            total = 0
            for entry in entries:
                total += sum(file.stat().st_size for file in entry.iterdir())
                if total > self.most_bytes:
                    shutil.rmtree(entry)


def of_forgotten(folder: Path, stones: Iterable[Tombstone]) -> list[Path]:
    """The kept first passes of forgotten recordings, and of those that show forgotten people."""
    found = []
    every = list(stones)
    for line in sorted(folder.glob(f"*/{_SOURCE}")) if every else []:
        source = read_json(line)
        if any(one.covers(source["sha256"], source["source_id"], source["person_hint"]) for one in every):
            found.append(line.parent)
    return found


def forget(folder: Path, stones: Iterable[Tombstone]) -> int:
    """Delete them; gives how many there were."""
    with locked(folder):
        gone = of_forgotten(folder, stones)
        for entry in gone:
            shutil.rmtree(entry)
    return len(gone)


def contents(folder: Path, stone: Tombstone) -> set[str]:
    """SHA-256 of what they hold of a forgotten recording's pictures and sound."""
    files = (entry / partial_results.ANALYSIS for entry in of_forgotten(folder, [stone]))
    return {file_digest(file) for file in files if file.is_file()}
