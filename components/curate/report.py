"""The page a person looks at: the funnel, what was kept and what was dropped and why. One file, no network."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.curate.funnel import Stage

_SHOWN = 40


def write_page(
    path: Path,
    stages: Sequence[Stage],
    rows: Sequence[Mapping[str, Any]],
    rejected: Sequence[Mapping[str, str]],
    facts: Mapping[str, Any],
    previews: Path,
) -> None:
    """Write curation.html.

    Args:
        path: the page.
        stages: the funnel.
        rows: manifest rows.
        rejected: sources left out, with file, reason and detail.
        facts: numbers for the head of the page.
        previews: folder of `<clip>.jpg` strips.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        facts=facts,
        stages=[stage.as_dict() for stage in stages],
        picture=_funnel_picture(stages),
        histograms=_score_picture(rows),
        kept=_cards([row for row in rows if row["kept"]], previews),
        dropped=_cards([row for row in rows if not row["kept"]], previews),
        rejected=rejected,
    )
    path.write_text(page)


def _cards(rows: Sequence[Mapping[str, Any]], previews: Path) -> list[dict[str, str]]:
    """Evenly chosen clips with their strip, title and bar of states."""
    step = max(len(rows) / _SHOWN, 1.0)
    chosen = [rows[int(i * step)] for i in range(min(len(rows), _SHOWN))]
    cards = []
    for row in chosen:
        strip = previews / f"{row['clip_id']}.jpg"
        cards.append(
            {
                "image": base64.b64encode(strip.read_bytes()).decode() if strip.exists() else "",
                "title": f"{row['clip_id']}  {row['seconds']:.1f} s",
                "text": row["reason"] or row["caption"],
                "states": _state_bar(row["states"], row["frames"]),
            }
        )
    return cards


def _state_bar(runs: Sequence[Sequence[int]], frames: int) -> str:
    """An SVG bar of the state track (built here from numbers only, hence marked safe in the template)."""
    colours = {0: "#c9ccd1", 1: "#d9603b", 2: "#3b7dd9", 255: "#000000"}
    x, parts = 0.0, []
    for state, length in runs:
        width = 100 * length / frames
        parts.append(f'<rect x="{x:.2f}" width="{width:.2f}" height="6" fill="{html.escape(colours[state])}"/>')
        x += width
    return f'<svg viewBox="0 0 100 6" preserveAspectRatio="none">{"".join(parts)}</svg>'


def _funnel_picture(stages: Sequence[Stage]) -> str:
    """Share left at every stage, as a base64 PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.5 + 0.45 * len(stages)))
    axes = figure.subplots()
    names = [f"{stage.stage} ({stage.unit}s)" for stage in stages]
    shares = [100 * stage.left / stage.entered if stage.entered else 0.0 for stage in stages]
    bars = axes.barh(names, shares, color="#3b7dd9")
    axes.bar_label(bars, [f"{s.left} of {s.entered}" for s in stages], padding=3, fontsize=8)
    axes.set_xlim(0, 125)
    axes.set_xlabel("left after the stage, %")
    axes.invert_yaxis()
    return _png(figure)


def _score_picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Histograms of some scores over all clips, as a base64 PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2))
    names = ("confidence", "sharpness", "yaw_deg", "head_motion_deg", "speech_ratio")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        kept = [row[name] for row in rows if row["kept"] and row[name] is not None]
        dropped = [row[name] for row in rows if not row["kept"] and row[name] is not None]
        axes.hist([kept, dropped], bins=15, stacked=True, color=["#3b7dd9", "#c9ccd1"])
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
    return _png(figure)


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()
