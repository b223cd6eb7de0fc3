"""The report page: the funnel, kept and dropped clips with reasons, and the effect of other thresholds.

A single file that opens from disk and fetches nothing. Images are embedded up to a size budget.
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
"""Largest size of the page."""
CARDS = 12
"""Clips shown per reason."""
WHAT_IF_CLIPS = 5_000
"""Maximum number of clips whose scores are embedded in the page; beyond that, an even sample."""
REASONS = {
    "no_reference": "no good image of the person outside the clip's span: use longer sources, or "
    "curate.require_reference",
    "references_are_copies": "every reference image is too similar to a frame of the clip, or shows somebody else: "
    "curate.references.min_distance",
    "no_face": "no face is detected",
    "discarded_state": "mouth and audio contradict each other: curate.states",
    "remainder": "frames between clips, or spans shorter than curate.min_clip_s",
    "too_short": "shorter than curate.min_clip_s",
    "no_audio": "no audio stream: curate.require_audio",
    "silent_audio": "the audio is silent: curate.require_audio",
    "audio_offset": "the audio is late or early: curate.states.av_offset",
    "duplicate": "the same bytes as another source",
    "erased": "erased on request (lpm data erase)",
}
"""Explanations of the reasons that do not come from a threshold, with the setting that decides."""
COUNTED = {
    "sources": "usable recordings, whether or not one of their clips is kept in the end",
    "people": "people tracked through a shot from whom a clip can be cut",
    "cut": "frames of these people that belong to a clip",
    "quality": "clips that pass every threshold",
    "references": "clips that also have a reference image of their person from elsewhere: the kept clips",
}
"""Explanation of the passed items of each stage of the funnel."""
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
        folder: the dataset; previews are embedded, and the Data Docs linked if present.
        stages: the funnel, as in curation.json.
        rows: manifest rows.
        rejected: rejected sources, with file, reason and detail.
        facts: numbers for the head of the page.
        thresholds: the active thresholds, by field of Thresholds.
        costs: cost of each part of both passes (part_timing.table_rows).
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
            counted=COUNTED,
            clips=len(rows),
        )
        if len(text.encode()) <= BUDGET_BYTES or cards == 0:
            break
        cards //= 2
    (folder / "curation.html").write_text(text, encoding="utf-8")


def what_if(rows: Sequence[Row], thresholds: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the data of the sliders: the scores of the clips, and each threshold with its range."""
    chosen, meanings = _even_sample(rows, WHAT_IF_CLIPS), help_texts(Thresholds)
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
                "meaning": meanings[item.name],
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


def _even_sample(rows: Sequence[Row], count: int) -> list[Row]:
    step = max(len(rows) / max(count, 1), 1.0)
    return [rows[int(index * step)] for index in range(min(len(rows), count))]


def _galleries(
    rows: Sequence[Row], previews: Path, count: int, thresholds: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Return the kept clips, then the dropped ones by reason, the most frequent reason first."""
    by_reason: dict[str, list[Row]] = {"": []}
    for row in rows:
        by_reason.setdefault(row["reason"], []).append(row)
    order = sorted(by_reason, key=lambda reason: (reason != "", -len(by_reason[reason]), reason))
    return [
        {
            "name": reason or "kept",
            "meaning": meaning_of(reason),
            "total": len(by_reason[reason]),
            "cards": [_card(row, previews, thresholds) for row in _even_sample(by_reason[reason], count)],
        }
        for reason in order
    ]


def threshold_of(reason: str) -> str:
    """Return the threshold that a reason comes from: text_ratio_above_max -> max_text_ratio; "" without one."""
    for suffix, side in (("_below_min", "min"), ("_above_max", "max")):
        if reason.endswith(suffix):
            return f"{side}_{reason.removesuffix(suffix)}"
    return ""


def meaning_of(reason: str) -> str:
    """Explain a reason and name the setting that decides; "" for a self-explanatory one."""
    name = threshold_of(reason)
    return f"{help_texts(Thresholds)[name]} curate.thresholds.{name}" if name else REASONS.get(reason, "")


def _missed_thresholds(row: Row, thresholds: Mapping[str, float | None]) -> list[dict[str, str]]:
    """Return why a clip was dropped: score, comparison and limit, with an explanation."""
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
    """Return the data of one clip's card: filmstrip, tracks and numbers."""
    filmstrip = previews / f"{row['clip_id']}.jpg"
    highlights = {name: row[name] for name in ("av_sync", "av_offset_frames") if row.get(name) is not None}
    partner = row["partner_source_id"] or row["partner_person"]
    return {
        "id": row["clip_id"],
        "image": base64.b64encode(filmstrip.read_bytes()).decode() if filmstrip.exists() else "",
        "seconds": f"{row['seconds']:.1f} s",
        "person": row["person_id"],
        "text": row["caption"],
        "kept": row["kept"],
        "missed": _missed_thresholds(row, thresholds),
        "partner": f"talks with {partner}" if partner else "",
        "highlights": {name: f"{value:.3g}" for name, value in highlights.items()},
        "scores": {name: f"{row[name]:.4g}" for name in SCORES if row[name] is not None},
        "tracks": _tracks(row),
        "references": ", ".join(f"{item['shows']} ({item['seconds_away']:.1f} s away)" for item in row["references"]),
    }


def _tracks(row: Row) -> dict[str, Any]:
    """Return the state bars and lines of a clip in a box of 100 x 40."""
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
