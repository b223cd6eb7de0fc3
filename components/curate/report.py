"""The page a person looks at: the funnel, what was kept and dropped and why, and what other thresholds would change.

One file that opens from disk and fetches nothing. Pictures are taken until a size budget is spent.
"""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.curate.config import Thresholds
from components.curate.manifest import SCORES

BUDGET_BYTES = 9_000_000
"""Most bytes of the page."""
CARDS = 12
"""Clips shown for each reason."""
WHAT_IF_CLIPS = 5_000
"""Most clips whose scores the page carries; beyond, an even sample."""
_COLOURS = {0: "#c9ccd1", 1: "#d9603b", 2: "#3b7dd9", 255: "#000000"}
_LINES = (("speech_track", "#2e7d32"), ("mouth_track", "#d9603b"), ("loudness_track", "#8b9099"))
_POINTS = 60

Row = Mapping[str, Any]


def write_page(
    folder: Path,
    stages: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    rejected: Sequence[Mapping[str, str]],
    facts: Mapping[str, Any],
    thresholds: Mapping[str, float | None],
    costs: Sequence[Mapping[str, Any]],
) -> None:
    """Write curation.html.

    Args:
        folder: the dataset; previews are taken from it, and the Data Docs linked where they are.
        stages: the funnel, as in curation.json.
        rows: manifest rows.
        rejected: sources left out, with file, reason and detail.
        facts: numbers for the head of the page.
        thresholds: those that decided, by field of Thresholds.
        costs: what each part of both passes cost (cost.table).
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("report.html")
    cards = CARDS
    while True:
        text = template.render(
            facts=facts,
            stages=stages,
            galleries=_galleries(rows, folder / "previews", cards),
            rejected=rejected,
            costs=costs,
            docs=(folder / "validation" / "index.html").is_file(),
            data=what_if(rows, thresholds),
            clips=len(rows),
        )
        if len(text.encode()) <= BUDGET_BYTES or cards == 0:
            break
        cards //= 2
    (folder / "curation.html").write_text(text, encoding="utf-8")


def what_if(rows: Sequence[Row], thresholds: Mapping[str, float | None]) -> dict[str, Any]:
    """What the sliders work on: scores of the clips, and each threshold with its range."""
    chosen = _evenly(rows, WHAT_IF_CLIPS)
    sliders = []
    for item in dataclasses.fields(Thresholds):
        side, _, score = item.name.partition("_")
        values = [row[score] for row in chosen if score in SCORES and row[score] is not None]
        if not values:
            continue
        now = thresholds.get(item.name)
        ends = [*values, *([now] if now is not None else [])]
        sliders.append(
            {"name": item.name, "score": score, "side": side, "now": now, "low": min(ends), "high": max(ends)}
        )
    names = sorted({slider["score"] for slider in sliders})
    return {
        "thresholds": sliders,
        "clips": [
            {
                "id": row["clip_id"],
                "fixed": next((reason for reason in row["reasons"] if not _by_threshold(reason)), ""),
                "scores": {name: row[name] for name in names},
            }
            for row in chosen
        ],
    }


def _by_threshold(reason: str) -> bool:
    return reason == "" or reason.endswith(("_below_min", "_above_max"))


def _evenly(rows: Sequence[Row], count: int) -> list[Row]:
    step = max(len(rows) / max(count, 1), 1.0)
    return [rows[int(index * step)] for index in range(min(len(rows), count))]


def _galleries(rows: Sequence[Row], previews: Path, count: int) -> list[dict[str, Any]]:
    """Kept clips, then dropped ones by reason, the most frequent first."""
    by_reason: dict[str, list[Row]] = {"": []}
    for row in rows:
        by_reason.setdefault(row["reason"], []).append(row)
    order = sorted(by_reason, key=lambda reason: (reason != "", -len(by_reason[reason]), reason))
    return [
        {
            "name": reason or "kept",
            "total": len(by_reason[reason]),
            "cards": [_card(row, previews) for row in _evenly(by_reason[reason], count)],
        }
        for reason in order
    ]


def _card(row: Row, previews: Path) -> dict[str, Any]:
    """One clip with its strip, tracks and numbers."""
    strip = previews / f"{row['clip_id']}.jpg"
    offsets = [name for name in row if "offset" in name and name not in ("camera_offset_samples",)]
    shown = {name: row[name] for name in ("sync", *offsets) if row.get(name) is not None}
    return {
        "id": row["clip_id"],
        "image": base64.b64encode(strip.read_bytes()).decode() if strip.exists() else "",
        "seconds": f"{row['seconds']:.1f} s",
        "person": row["person_id"],
        "text": row["caption"],
        "kept": row["kept"],
        "shown": {name: f"{value:.3g}" for name, value in shown.items()},
        "scores": {name: f"{row[name]:.4g}" for name in SCORES if row[name] is not None},
        "tracks": _tracks(row),
        "references": ", ".join(f"{item['shows']} ({item['seconds_away']:.1f} s away)" for item in row["references"]),
    }


def _tracks(row: Row) -> dict[str, Any]:
    """State bars and lines of a clip in a box of 100 x 40."""
    frames = row["frames"]
    x, bars = 0.0, []
    for state, length in row["states"]:
        width = 100 * length / frames
        bars.append({"x": round(x, 2), "width": round(width, 2), "colour": _COLOURS[state]})
        x += width
    lines = []
    for name, colour in _LINES:
        values = list(row[name])
        step = max(1, len(values) // _POINTS)
        points = [f"{100 * at / frames:.1f},{32 - 31 * values[at] / 255:.1f}" for at in range(0, len(values), step)]
        lines.append({"colour": colour, "points": " ".join(points)})
    return {"bars": bars, "lines": lines}
