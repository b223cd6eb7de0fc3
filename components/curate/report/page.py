"""The page a person looks at: the funnel, what was kept and dropped and why, and what other thresholds would change.

One file that opens from disk and fetches nothing. Pictures are taken until a size budget is spent.
"""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.curate.config import Thresholds
from components.curate.scorers import COLUMNS as SCORES
from lpm_model.config import help_texts

BUDGET_BYTES = 9_000_000
"""Most bytes of the page."""
CARDS = 12
"""Clips shown for each reason."""
WHAT_IF_CLIPS = 5_000
"""Most clips whose scores the page carries; beyond, an even sample."""
REASONS = {
    "no_reference": "the person is never seen well outside the clip's span: longer sources, or require_reference",
    "references_are_copies": "every picture beside the clip looks like one of its frames, or like somebody else: "
    "curate.references.min_distance",
    "no_face": "no face is seen",
    "discarded_state": "mouth and sound contradict each other: curate.states",
    "remainder": "what is left between clips, or is shorter than curate.min_clip_s",
    "too_short": "shorter than curate.min_clip_s",
    "no_audio": "without sound: curate.require_audio",
    "silent_audio": "the sound is silence: curate.require_audio",
    "audio_offset": "the sound is late or early: curate.states.av_offset",
    "duplicate": "the same bytes as another source",
    "forgotten": "removed on request",
}
"""What reasons mean that are no threshold's, and the setting that decides."""
GOES_ON = {
    "sources": "recordings that can be used, whether or not a clip of them is kept in the end",
    "people": "people followed through a shot of whom a clip can be cut",
    "cut": "frames of these people that lie in a clip",
    "quality": "clips that every threshold lets through",
    "references": "clips that also have a picture of their person from elsewhere: those that are kept",
}
"""What each stage of the funnel counts."""
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
    template = environment.get_template("page.html")
    cards = CARDS
    while True:
        text = template.render(
            facts=facts,
            stages=stages,
            galleries=_galleries(rows, folder / "previews", cards, thresholds),
            rejected=rejected,
            costs=costs,
            docs=(folder / "validation" / "index.html").is_file(),
            data=what_if(rows, thresholds),
            meaning=meaning_of,
            goes_on=GOES_ON,
            clips=len(rows),
        )
        if len(text.encode()) <= BUDGET_BYTES or cards == 0:
            break
        cards //= 2
    (folder / "curation.html").write_text(text, encoding="utf-8")


def what_if(rows: Sequence[Row], thresholds: Mapping[str, float | None]) -> dict[str, Any]:
    """What the sliders work on: scores of the clips, and each threshold with its range."""
    chosen, known = _evenly(rows, WHAT_IF_CLIPS), help_texts(Thresholds)
    sliders = []
    for item in dataclasses.fields(Thresholds):
        side, _, score = item.name.partition("_")
        values = [row[score] for row in chosen if score in SCORES and row[score] is not None]
        if not values:
            continue
        now = thresholds.get(item.name)
        ends = [*values, *([now] if now is not None else [])]
        sliders.append(
            {
                "name": item.name,
                "score": score,
                "side": side,
                "now": now,
                "low": min(ends),
                "high": max(ends),
                "meaning": known[item.name],
            }  # fmt: skip
        )
    names = sorted({slider["score"] for slider in sliders})
    return {
        "thresholds": sliders,
        "clips": [
            {
                "id": row["clip_id"],
                "fixed": next((reason for reason in row["reasons"] if not threshold_of(reason)), ""),
                "scores": {name: row[name] for name in names},
            }
            for row in chosen
        ],
    }


def _evenly(rows: Sequence[Row], count: int) -> list[Row]:
    step = max(len(rows) / max(count, 1), 1.0)
    return [rows[int(index * step)] for index in range(min(len(rows), count))]


def _galleries(
    rows: Sequence[Row], previews: Path, count: int, thresholds: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Kept clips, then dropped ones by reason, the most frequent first."""
    by_reason: dict[str, list[Row]] = {"": []}
    for row in rows:
        by_reason.setdefault(row["reason"], []).append(row)
    order = sorted(by_reason, key=lambda reason: (reason != "", -len(by_reason[reason]), reason))
    return [
        {
            "name": reason or "kept",
            "meaning": meaning_of(reason),
            "total": len(by_reason[reason]),
            "cards": [_card(row, previews, thresholds) for row in _evenly(by_reason[reason], count)],
        }
        for reason in order
    ]


def threshold_of(reason: str) -> str:
    """Name of the threshold that a reason comes from: text_ratio_above_max -> max_text_ratio; "" without one."""
    for ending, side in (("_below_min", "min"), ("_above_max", "max")):
        if reason.endswith(ending):
            return f"{side}_{reason.removesuffix(ending)}"
    return ""


def meaning_of(reason: str) -> str:
    """What a reason says, and the setting that decides; "" for one that explains itself."""
    name = threshold_of(reason)
    return f"{help_texts(Thresholds)[name]} curate.thresholds.{name}" if name else REASONS.get(reason, "")


def _missed(row: Row, thresholds: Mapping[str, float | None]) -> list[dict[str, str]]:
    """What a clip failed by: score, limit and which side of it is wrong, and what that means."""
    lines = []
    for reason in row["reasons"]:
        name = threshold_of(reason)
        limit, score = thresholds.get(name), row.get(name.partition("_")[2])
        if limit is None or score is None:
            text = reason
        else:
            text = f"{name.partition('_')[2]} {score:.4g} {'<' if name.startswith('min') else '>'} {limit:.4g}"
        lines.append({"text": text, "meaning": meaning_of(reason)})
    return lines


def _card(row: Row, previews: Path, thresholds: Mapping[str, float | None]) -> dict[str, Any]:
    """One clip with its strip, tracks and numbers."""
    strip = previews / f"{row['clip_id']}.jpg"
    shown = {name: row[name] for name in ("av_sync", "av_offset_frames") if row.get(name) is not None}
    partner = row["partner_source_id"] or row["partner_person"]
    return {
        "id": row["clip_id"],
        "image": base64.b64encode(strip.read_bytes()).decode() if strip.exists() else "",
        "seconds": f"{row['seconds']:.1f} s",
        "person": row["person_id"],
        "text": row["caption"],
        "kept": row["kept"],
        "missed": _missed(row, thresholds),
        "partner": f"talks with {partner}" if partner else "",
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
