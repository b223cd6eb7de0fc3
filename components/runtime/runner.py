"""Runs one step: reuses an unchanged result, measures, records lineage. CLI, DVC and KFP tasks all come through here.

A result is kept under `<cache>/steps/<verb>/<key>/`; the key digests the inputs, the config and the code that the
step reaches, so that a change in any of them runs the step again. A step always works inside its cache entry:
a killed run finds there what it had done so far.
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
    settings_that_count,
)
from components.runtime.lineage import Link, extend, read_sources
from components.runtime.steps import Step, report_mapping
from lpm_model.config import to_mapping
from lpm_model.digests import file_digest, output_digest
from lpm_model.files import locked, read_json, write_json
from lpm_model.progress import Progress

log = logging.getLogger(__name__)

KEPT_ENTRIES = 4
"""Cached results kept for each verb; older ones are deleted."""
_ENTRY = "step.json"
_UNFINISHED_S = 7 * 24 * 3600.0
"""Time since the last call after which an unfinished result is deleted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What happened when a step ran."""

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
    """Digest of the config."""
    code: str = ""
    """Digest of the code."""
    worked_seconds: float = 0.0
    """Wall time of the call that made the result (s)."""
    report: dict[str, Any] = field(default_factory=dict)
    """The step's report."""


def run_step(
    step: Step,
    inputs: Mapping[str, Path | str],
    output: Path,
    config: Any,
    progress: Progress,
    *,
    cache: Path | None = None,
) -> StepRecord:
    """Run one step, or reuse what an identical call gave before.

    Args:
        step: the verb's table entry.
        inputs: parameter -> folder or text.
        output: folder to write; replaced when it exists.
        config: the step's config dataclass.
        progress: how the step says how far it is.
        cache: folder of kept results; None runs the step straight into `output`.

    Raises:
        ValueError: an input folder is missing, or the step refuses its inputs.
    """
    started = time.monotonic()
    for name, value in inputs.items():
        if isinstance(value, Path) and not value.is_dir():
            raise ValueError(f"{step.verb} needs {name}: {value} does not exist; run the step that writes it first")
    digests = {name: input_digest(value) for name, value in inputs.items()}
    shared = {step.kept: cache / step.kept} if step.kept and cache is not None else {}
    stones = Path(getattr(config, "tombstones", ""))
    if stones.is_file():  # a kept result may hold what was forgotten since
        digests["tombstones"] = file_digest(stones)
    settings = config_digest(settings_that_count(to_mapping(config)))
    code = code_digest(step.module)
    with _PeakMemory() as memory:
        if cache is None or not step.cacheable or not all(digests.values()):
            record = _work(step, inputs, output, config, progress, digests, settings, code, shared)
            return dataclasses.replace(record, seconds=_since(started), peak_rss_mb=memory.peak_mb())
        key = hashlib.sha256(json.dumps([step.verb, digests, settings, code]).encode()).hexdigest()[:24]
        entry = cache / "steps" / step.verb / key
        with locked(entry):  # a second identical run waits and then reuses the result
            entry.mkdir(parents=True, exist_ok=True)
            os.utime(entry)
            kept = _reuse(entry, step.output)
            target = entry / step.output
            record = kept or _work(step, inputs, target, config, progress, digests, settings, code, shared)
            if kept is not None:
                os.utime(entry / _ENTRY)
            elif not record.report.get("to_try_again"):  # else the same call may give more another time
                write_json(entry / _ENTRY, record)
                _prune(entry.parent)
            link_tree(target, output)
        return dataclasses.replace(
            record, cached=kept is not None, seconds=_since(started), peak_rss_mb=memory.peak_mb()
        )


def link_tree(source: Path, target: Path) -> None:
    """Give a folder a second name without a second copy (hard links; copies across file systems)."""
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


def _work(
    step: Step,
    inputs: Mapping[str, Path | str],
    output: Path,
    config: Any,
    progress: Progress,
    digests: dict[str, str],
    settings: str,
    code: str,
    shared: dict[str, Path],
) -> StepRecord:
    started = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    folders = {step.output: output, **shared}
    report = report_mapping(step.function()(**inputs, **folders, config=config, progress=progress))
    digest = output_digest(output)
    link = Link(
        step=step.verb,
        inputs=digests,
        output=digest,
        config=settings,
        code=code,
        commit=code_commit(),
        sources=read_sources(output) if step.verb == "ingest" else (),
    )
    extend({name: value for name, value in inputs.items() if isinstance(value, Path)}, output, link)
    return StepRecord(
        step=step.verb,
        seconds=0.0,
        peak_rss_mb=0.0,
        cached=bool(report.get("reused", False)),
        inputs=digests,
        output=digest,
        config=settings,
        code=code,
        worked_seconds=_since(started),
        report=report,
    )


def _reuse(entry: Path, output: str) -> StepRecord | None:
    """The record of a complete entry whose files are still what the step wrote."""
    if not (entry / _ENTRY).exists():
        return None
    record = StepRecord(**read_json(entry / _ENTRY))
    if output_digest(entry / output) == record.output:
        return record
    log.warning("the kept result of %s was changed on disk (%s): running the step again", record.step, entry)
    shutil.rmtree(entry)
    entry.mkdir()
    return None


def _prune(verb_folder: Path) -> None:
    """Delete the oldest complete entries; an unfinished one may still be resumed, for a week."""
    for entry in [entry for entry in verb_folder.iterdir() if entry.is_dir() and not (entry / _ENTRY).exists()]:
        if time.time() - entry.stat().st_mtime > _UNFINISHED_S:
            try:
                with locked(entry, wait=False):
                    log.warning("%s is deleted: unfinished, and nobody went on with it for a week", entry)
                    shutil.rmtree(entry)
            except BlockingIOError:
                log.info("%s is being worked on", entry)
    complete = [entry.parent for entry in verb_folder.glob(f"*/{_ENTRY}")]
    complete.sort(key=lambda entry: (entry / _ENTRY).stat().st_mtime, reverse=True)
    for entry in complete[KEPT_ENTRIES:]:
        shutil.rmtree(entry)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


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
