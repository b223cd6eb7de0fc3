"""Terminal output: progress of a run, its summary table, lineage, the doctor's report."""

import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID
from rich.table import Table

from components.runtime.lineage import Link, SourceLink
from components.runtime.progress import Event, progress_bars
from components.runtime.runner import StepRecord
from components.runtime.steps import STEPS
from pipelines.doctor import Check

if TYPE_CHECKING:
    from lpm_model.describe import Cost

LOG_INTERVAL_S = 20.0
"""Time between two lines of progress without a terminal."""
_COLOURS = {"ok": "green", "missing": "red", "optional": "yellow"}


class RunDisplay:
    """Displays a run: a bar for each task in progress, a line for each finished step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = progress_bars(console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._logged_s = time.monotonic()

    def __enter__(self) -> "RunDisplay":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event of `pipelines.local.run_pipeline`."""
        step = event["step"]
        if event.get("finished"):
            for key in [key for key in self._tasks if key[0] == step]:
                self._bars.remove_task(self._tasks.pop(key))
            record = event["record"]
            state = "unchanged, reused" if record["cached"] else f"peak {record['peak_rss_mb']:.0f} MiB"
            self._console.print(f"[green]done[/] {step:<9} {record['seconds']:7.1f} s  {state}")
            return
        label = f"{step}: {event['description']}"
        if self._console.is_terminal:
            self._draw((step, event["description"]), label, event["done"], event["total"])
        elif time.monotonic() - self._logged_s >= LOG_INTERVAL_S:
            self._logged_s = time.monotonic()
            self._console.print(f"     {label} {event['done']}/{event['total'] or '?'}")

    def _draw(self, key: tuple[str, str], label: str, done: int, total: int | None) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(label, total=total)
        self._bars.update(self._tasks[key], completed=done, total=total)


def summary_table(summary: dict[str, Any], title: str) -> Table:
    """Return one table: steps and times, funnel, scores, model version."""
    table = Table("", "what", "value", "note", title=title, title_justify="left")
    for i, (verb, record) in enumerate(summary["steps"].items()):
        note = "reused" if record["cached"] else f"peak {record['peak_rss_mb']:.0f} MiB"
        table.add_row("" if i else "steps", verb, f"{record['seconds']:.1f} s", note)
    table.add_section()
    for i, stage in enumerate(summary["funnel"]):
        reasons = ", ".join(f"{reason} {count}" for reason, count in stage["reasons"].items())
        table.add_row(
            "" if i else "funnel", escape(stage["stage"]), f"{stage['in']} -> {stage['out']}", escape(reasons)
        )
    table.add_section()
    for i, (name, value) in enumerate(summary["scores"].items()):
        table.add_row("" if i else "scores", name, "not measured" if value is None else f"{value:.3f}", "")
    table.add_section()
    dataset, model = summary["dataset"], summary["model"]
    note = f"{dataset['clips']} clips, {dataset['seconds']:.0f} s"
    table.add_row("dataset", dataset["digest"][:12], "", note)
    table.add_row("model", model["name"], f"version {model['version']}", f"{model['alias']}, {model['digest'][:12]}")
    return table


def record_line(record: StepRecord, output: Path) -> str:
    """Return one line about a finished step."""
    state = "unchanged, reused" if record.cached else f"peak {record.peak_rss_mb:.0f} MiB"
    return f"[green]done[/] {record.step} in {record.seconds:.1f} s ({state}) -> {escape(str(output))}"


def doctor_table(checks: Sequence[Check]) -> Table:
    """Return one row per check: state, finding, remedy."""
    table = Table("check", "state", "found", "remedy")
    for check in checks:
        state = f"[{_COLOURS[check.state]}]{check.state}[/]"
        table.add_row(escape(check.name), state, escape(check.found), escape(check.fix))
    return table


def lineage_lines(links: Sequence[Link]) -> list[str]:
    """Return the lineage, newest step first, down to the digests of the source videos."""
    order = list(STEPS)
    lines = []
    for link in sorted(links, key=lambda known: order.index(known.step), reverse=True):
        inputs = ", ".join(f"{name} {digest[:12]}" for name, digest in link.inputs.items())
        lines.append(f"[bold]{link.step}[/] -> {link.output[:12]}  from {inputs}")
        lines.append(f"    commit {link.commit}, config {link.config[:12]}, code {link.code[:12]}")
        if link.packages:
            lines.append(f"    {escape(', '.join(f'{name} {version}' for name, version in link.packages.items()))}")
        for rights, sources in groupby(sorted(link.sources, key=_rights), key=_rights):
            lines.append(f"    sources under {escape(rights)}:" if rights else "    sources:")
            lines.extend(f"      {source.sha256} {escape(source.source_id)}" for source in sources)
    return lines


def _rights(source: SourceLink) -> str:
    return ", ".join(text for text in (source.licence, source.consent_ref) if text)


def cost_table(cost: "Cost") -> Table:
    """Return a table of parameters and FLOPs by part, then bytes."""
    table = Table(title="one forward pass over a chunk, cache full")
    for column in ("part", "parameters", "GFLOP"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, count in sorted(cost.parameters.items(), key=lambda item: -item[1]):
        table.add_row(part, f"{count:,}", f"{cost.flops.get(part, 0) / 1e9:,.2f}")
    table.add_row("all", f"{cost.total_parameters:,}", f"{cost.total_flops / 1e9:,.2f}", end_section=True)
    table.add_row("per video token", "", f"{cost.flops_per_token / 1e9:,.4f}", end_section=True)
    for name, value in (
        ("weights", cost.weight_bytes),
        ("KV cache per latent frame", cost.kv_bytes_per_latent),
        ("full KV cache", cost.kv_bytes),
        ("activations inside a block", cost.activation_bytes),
        ("activations of a training step, with activation checkpointing", cost.training_bytes),
    ):
        table.add_row(name, f"{value / 2**20:,.1f} MiB", "")
    return table
