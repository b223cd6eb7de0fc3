"""The body of every KFP component: run one step, then write metadata, metrics, a Markdown summary and a preview.

Environment (set by `lpm run`, absent in a cluster): LPM_RUN_DIR names the run folder that receives the outputs,
LPM_CACHE the folder of cached results, LPM_PROGRESS the file that receives progress events.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.runtime.progress import FileProgress
from components.runtime.runner import StepRecord, run_step
from components.runtime.steps import STEPS
from components.runtime.tracking import numbers_of
from lpm_model.config import from_mapping
from lpm_model.files import write_json
from lpm_model.progress import NoProgress, Progress


def run_task(
    verb: str,
    config: str,
    inputs: Mapping[str, str],
    output: Any,
    metrics: Any,
    summary: Any,
    *,
    source: str = "",
    preview: Any = None,
) -> None:
    """Run one step as a KFP task.

    Args:
        verb: the step.
        config: the step's config as JSON.
        inputs: parameter -> path of an input artifact.
        output: KFP artifact that receives the folder.
        metrics: KFP Metrics artifact.
        summary: KFP Markdown artifact.
        source: source of ingest.
        preview: KFP HTML artifact, for steps that write a page.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    step = STEPS[verb]
    run_dir = Path(os.environ["LPM_RUN_DIR"]) if "LPM_RUN_DIR" in os.environ else None
    cache = Path(os.environ["LPM_CACHE"]) if "LPM_CACHE" in os.environ else None
    folder = run_dir / step.folder if run_dir else Path(output.path)
    progress: Progress = NoProgress()
    if "LPM_PROGRESS" in os.environ:
        progress = FileProgress(Path(os.environ["LPM_PROGRESS"]), verb)
    arguments: dict[str, Path | str] = {name: Path(path) for name, path in inputs.items()}
    if source:
        arguments["source"] = source
    try:
        settings = from_mapping(step.config_class(), json.loads(config), where=f"{verb}.")
        record = run_step(step, arguments, folder, settings, progress, cache=cache)
    except Exception as error:
        if run_dir:
            write_json(run_dir / "steps" / f"{verb}.error.json", {"kind": type(error).__name__, "message": str(error)})
        raise
    if run_dir:
        os.symlink(folder, output.path)
        write_json(run_dir / "steps" / f"{verb}.json", record)
    _describe(record, folder, output, metrics, summary, preview)


def _describe(record: StepRecord, folder: Path, output: Any, metrics: Any, summary: Any, preview: Any) -> None:
    output.metadata.update(
        digest=record.output, config=record.config, code=record.code, cached=record.cached, **record.inputs
    )
    numbers = numbers_of(record.report)
    for name, value in numbers.items():
        metrics.log_metric(name, value)
    write_json(Path(metrics.path), numbers)
    Path(summary.path).write_text(markdown(record))
    if preview is not None:
        pages = [folder / "report.html", folder / "curation.html", *sorted(folder.glob("validation/**/index.html"))]
        page = next((page for page in pages if page.exists()), None)
        Path(preview.path).write_text(page.read_text() if page else "<p>This step wrote no page.</p>")


def markdown(record: StepRecord) -> str:
    """Return a short table about one step for the KFP page."""
    rows = [
        ("seconds", f"{record.seconds:.1f}"),
        ("peak memory (MiB)", f"{record.peak_rss_mb:.0f}"),
        ("reused an earlier result", "yes" if record.cached else "no"),
        ("output digest", record.output[:12]),
        *((name, f"{value:g}") for name, value in numbers_of(record.report).items()),
    ]
    lines = [f"# {record.step}", "", "| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    for stage in record.report.get("funnel", []):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in stage.get("reasons", {}).items())
        lines.append(f"| {stage['stage']} | {stage['in']} to {stage['out']} ({reasons or 'nothing dropped'}) |")
    return "\n".join(lines) + "\n"
