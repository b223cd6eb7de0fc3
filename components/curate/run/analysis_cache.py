"""Analyses cached across runs: with other thresholds or additional files, only new sources are analysed.

Each entry is a folder named by the digest of everything that its analysis depends on; datasets contain no part of it.
Only the main process reads and writes the cache: workers may run on machines without access to it.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from components.curate.run import partial_results
from components.curate.run.analysis_file import ANALYSIS_FILE
from components.curate.run.job import Job, Outcome
from components.curate.video import roi_cache
from components.dataset.tombstones import Tombstone
from lpm_model.digests import file_digest
from lpm_model.files import link_file, locked, read_json, write_json

_SOURCE = "source.json"
"""The line of sources.jsonl that an entry belongs to."""


@dataclass(frozen=True, slots=True)
class AnalysisCache:
    """A folder of analyses."""

    folder: Path
    """Folder of the entries; need not exist."""
    max_bytes: float
    """Size of the folder after `evict`."""

    def restore(self, job: Job) -> None:
        """Link a cached analysis into the job's partial results, if the source's file still has the same bytes."""
        entry, file = self.folder / job.key, job.raw / job.source.file
        if not entry.is_dir() or not file.is_file() or file_digest(file) != job.source.sha256:
            return
        with locked(self.folder):
            outcome = partial_results.finished(entry, partial_results.ANALYSIS, job.key)
            if outcome is None:
                return
            os.utime(entry)
            roi_cache.discard(job.folder)  # it belongs to the analysis of another file
            if outcome["ok"]:
                job.folder.mkdir(parents=True, exist_ok=True)
                link_file(entry / ANALYSIS_FILE, job.folder / ANALYSIS_FILE)
        partial_results.finish(job.folder, partial_results.ANALYSIS, job.key, outcome)

    def store(self, job: Job, outcome: Outcome) -> None:
        """Add a new analysis, unless it failed transiently or the digest of its file is unknown."""
        if not job.source.sha256 or outcome.get("reason") in partial_results.RETRYABLE:
            return
        entry = self.folder / job.key
        with locked(self.folder):
            entry.mkdir(exist_ok=True, parents=True)
            write_json(entry / _SOURCE, job.source)
            if outcome["ok"]:
                link_file(job.folder / ANALYSIS_FILE, entry / ANALYSIS_FILE)
            partial_results.finish(entry, partial_results.ANALYSIS, job.key, outcome)
            os.utime(entry)

    def evict(self) -> None:
        """Delete the least recently used entries until the rest fits into `max_bytes`."""
        if not self.folder.is_dir():
            return
        with locked(self.folder):
            entries = sorted(
                filter(Path.is_dir, self.folder.iterdir()), key=lambda entry: entry.stat().st_mtime, reverse=True
            )
            total = 0
            for entry in entries:
                total += sum(file.stat().st_size for file in entry.iterdir())
                if total > self.max_bytes:
                    shutil.rmtree(entry)


def open_cache(folder: Path | None, max_gb: float, tombstones: Iterable[Tombstone]) -> AnalysisCache | None:
    """Open the analysis cache in a folder and delete erased entries; None without a folder."""
    if folder is None:
        return None
    erase(folder, tombstones)
    return AnalysisCache(folder, max_gb * 1e9)


def erased_entries(folder: Path, tombstones: Iterable[Tombstone]) -> list[Path]:
    """Return the entries of erased recordings, and of those that show erased people."""
    found = []
    stones = list(tombstones)
    for line in sorted(folder.glob(f"*/{_SOURCE}")) if stones else []:
        source = read_json(line)
        if any(stone.covers(source["sha256"], source["source_id"], source["person_hint"]) for stone in stones):
            found.append(line.parent)
    return found


def erase(folder: Path, tombstones: Iterable[Tombstone]) -> int:
    """Delete the entries of erased recordings and people; return their number."""
    with locked(folder):
        entries = erased_entries(folder, tombstones)
        for entry in entries:
            shutil.rmtree(entry)
    return len(entries)


def erased_digests(folder: Path, tombstone: Tombstone) -> set[str]:
    """Return the SHA-256 of each cached analysis of an erased recording."""
    files = (entry / ANALYSIS_FILE for entry in erased_entries(folder, [tombstone]))
    return {file_digest(file) for file in files if file.is_file()}
