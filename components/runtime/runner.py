"""Runs one step for CLI, DVC and KFP: reuses an unchanged result, measures time and memory, records lineage.

A result is cached under `<cache>/steps/<verb>/<key>/`; the key digests the inputs, the settings that affect the result,
the code that the step reaches and the versions of the packages that can change the result, so that a change in any of
them runs the step again. A step always writes to its cache entry, where a killed run finds its partial results.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.runtime.cache_keys import (
    code_commit,
    code_digest,
    config_digest,
    input_digest,
    package_versions,
    path_digests,
)
from components.runtime.lineage import Link, source_links, write_lineage
from components.runtime.steps import Step, report_mapping
from lpm_model.config import result_settings
from lpm_model.digests import file_digest, output_digest
from lpm_model.files import locked, read_json, write_json
from lpm_model.progress import Progress

log = logging.getLogger(__name__)

MAX_ENTRIES = 4
"""Number of cached results to keep per verb; older ones are deleted."""
_ENTRY = "step.json"
_UNFINISHED_S = 7 * 24 * 3600.0
"""Time since the last call after which an unfinished result is deleted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """Record of one call of a step."""

    step: str
    """Verb."""
    seconds: float
    """Wall time of this call (s)."""
    peak_rss_mb: float
    """Peak resident memory of the process and its children during this call (MiB)."""
    cached: bool
    """True when an earlier result was reused."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Parameter -> digest."""
    output: str = ""
    """Digest of the output folder."""
    config: str = ""
    """Digest of the settings that affect the result."""
    code: str = ""
    """Digest of the code."""
    packages: dict[str, str] = field(default_factory=dict)
    """Package -> version, of those that shape the result."""
    worked_seconds: float = 0.0
    """Wall time of the call that computed the result (s)."""
    report: dict[str, Any] = field(default_factory=dict)
    """The step's report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """A step with everything that determines its result."""

    step: Step
    """The verb's table entry."""
    inputs: Mapping[str, Path | str]
    """Parameter -> folder or text."""
    config: Any
    """The step's config dataclass."""
    digests: dict[str, str]
    """Parameter -> digest; includes those of the paths that settings name, and of the tombstones, if there are any."""
    settings: str
    """Digest of the settings that affect the result."""
    code: str
    """Digest of the code that the step reaches."""
    packages: dict[str, str]
    """Package -> version, of those that shape the result."""

    @property
    def cacheable(self) -> bool:
        """Whether an identical call gives the same result."""
        return self.step.cacheable and all(self.digests.values())

    @property
    def key(self) -> str:
        """Name of the cache entry."""
        parts = [self.step.verb, self.digests, self.settings, self.code, self.packages]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def run_step(
    step: Step,
    inputs: Mapping[str, Path | str],
    output: Path,
    config: Any,
    progress: Progress,
    *,
    cache: Path | None = None,
) -> StepRecord:
    """Run one step, or reuse the result of an identical call.

    Args:
        step: the verb's table entry.
        inputs: parameter -> folder or text.
        output: folder to write; replaced when it exists.
        config: the step's config dataclass.
        progress: receives the step's progress.
        cache: folder of cached results; None runs the step straight into `output`.

    Raises:
        ValueError: an input folder is missing, or the step rejects its inputs.
    """
    started_s = time.monotonic()
    call = _prepare_call(step, inputs, config)
    shared = {step.shared_cache: cache / step.shared_cache} if step.shared_cache and cache is not None else {}
    with _PeakMemory() as memory:
        if cache is None or not call.cacheable:
            record = _execute(call, output, progress, shared)
            return dataclasses.replace(record, seconds=_elapsed_s(started_s), peak_rss_mb=memory.peak_mb())
        entry = cache / "steps" / step.verb / call.key
        with locked(entry):  # a second identical run waits and then reuses the result
            entry.mkdir(parents=True, exist_ok=True)
            os.utime(entry)
            cached = _reuse(entry, step.output)
            target = entry / step.output
            record = cached or _execute(call, target, progress, shared)
            if cached is not None:
                os.utime(entry / _ENTRY)
            elif not record.report.get("num_retryable"):  # else a retry may return more
                write_json(entry / _ENTRY, record)
                _prune(entry.parent)
            link_tree(target, output)
        return dataclasses.replace(
            record, cached=cached is not None, seconds=_elapsed_s(started_s), peak_rss_mb=memory.peak_mb()
        )


def _prepare_call(step: Step, inputs: Mapping[str, Path | str], config: Any) -> _Call:
    for name, value in inputs.items():
        if isinstance(value, Path) and not value.is_dir():
            raise ValueError(f"{step.verb} needs {name}: {value} does not exist; run the step that writes it first")
    digests = {name: input_digest(value) for name, value in inputs.items()} | path_digests(config)
    tombstones = Path(getattr(config, "tombstones", ""))
    if tombstones.is_file():  # a cached result may contain data that has been erased since
        digests["tombstones"] = file_digest(tombstones)
    return _Call(
        step=step,
        inputs=inputs,
        config=config,
        digests=digests,
        settings=config_digest(result_settings(config)),
        code=code_digest(step.module),
        packages=package_versions(step.module),
    )


def link_tree(source: Path, target: Path) -> None:
    """Replace `target` by a copy of a folder made of hard links, or of copies across file systems."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)

    def link(src: str, dst: str) -> None:
        try:
            os.link(src, dst)
        except OSError:
            shutil.copy2(src, dst)

    shutil.copytree(source, target, copy_function=link)


def _execute(call: _Call, output: Path, progress: Progress, shared: Mapping[str, Path]) -> StepRecord:
    started_s = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    step = call.step
    folders = {step.output: output, **shared}
    report = report_mapping(step.function()(**call.inputs, **folders, config=call.config, progress=progress))
    digest = output_digest(output)
    link = Link(
        step=step.verb,
        inputs=call.digests,
        output=digest,
        config=call.settings,
        code=call.code,
        commit=code_commit(),
        packages=call.packages,
        sources=source_links(output) if step.verb == "ingest" else (),
    )
    write_lineage({name: value for name, value in call.inputs.items() if isinstance(value, Path)}, output, link)
    return StepRecord(
        step=step.verb,
        seconds=0.0,
        peak_rss_mb=0.0,
        cached=bool(report.get("reused", False)),
        inputs=call.digests,
        output=digest,
        config=call.settings,
        code=call.code,
        packages=call.packages,
        worked_seconds=_elapsed_s(started_s),
        report=report,
    )


def _reuse(entry: Path, output: str) -> StepRecord | None:
    """Return the record of a complete entry whose files are unchanged; None otherwise."""
    if not (entry / _ENTRY).exists():
        return None
    record = StepRecord(**read_json(entry / _ENTRY))
    if output_digest(entry / output) == record.output:
        return record
    log.warning("the cached result of %s was changed on disk (%s): running the step again", record.step, entry)
    shutil.rmtree(entry)
    entry.mkdir()
    return None


def _prune(verb_folder: Path) -> None:
    """Delete the oldest complete entries; an unfinished one can be resumed for a week."""
    for entry in [entry for entry in verb_folder.iterdir() if entry.is_dir() and not (entry / _ENTRY).exists()]:
        if time.time() - entry.stat().st_mtime > _UNFINISHED_S:
            try:
                with locked(entry, wait=False):
                    log.warning("deleting %s: unfinished, and not resumed for a week", entry)
                    shutil.rmtree(entry)
            except BlockingIOError:
                log.info("%s is in use by another process", entry)
    complete = [entry.parent for entry in verb_folder.glob(f"*/{_ENTRY}")]
    complete.sort(key=lambda entry: (entry / _ENTRY).stat().st_mtime, reverse=True)
    for entry in complete[MAX_ENTRIES:]:
        shutil.rmtree(entry)


def _elapsed_s(started_s: float) -> float:
    return round(time.monotonic() - started_s, 3)


class _PeakMemory:
    """Samples the resident memory of this process and its children twice a second."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "_PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peak_mb(self) -> float:
        return round(max(self._peak, _own_peak_bytes()) / 2**20, 1)

    def _sample(self) -> None:
        import psutil

        me = psutil.Process()
        while True:
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self._peak = max(self._peak, total)
            if self._stop.wait(0.5):
                return


def _own_peak_bytes() -> int:
    """High-water mark of this process (Linux); between two samples memory may have been higher than either."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024
