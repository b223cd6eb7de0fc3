"""Writes the report folder: report.json, report.html with videos and curves, talk.mp4; opens without a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluate.cases.cases import LISTEN, SPEAK, Array
from components.evaluate.config import EvaluateReport
from components.evaluate.report.views import CaseView
from lpm_model.config import SAMPLES_PER_FRAME, VIDEO_FPS
from lpm_model.files import write_json
from serving.media.mp4 import Mp4Writer
from serving.talk import mix

SCALE = 2
"""Magnification of the frames in the report's videos."""
CARDS = {
    "sync": (
        "Lip sync",
        "Correlation of the measured mouth opening with the ground truth on speaking frames, at zero lag.",
    ),
    "mouth_rest": ("Mouth at rest", "How much less the mouth moves while listening than while speaking."),
    "listening": (
        "Listening",
        "Mean of three metrics: nods and smiles at the same times as the ground truth, and head movement 0.2-0.8 s "
        "after the partner's pauses.",
    ),
    "identity": ("Identity", "Fraction of frames closest to the right person among all people of the set."),
    "identity_similarity": (
        "Identity similarity",
        "Cosine of the identity embedding to the person's mean ground-truth embedding.",
    ),
    "fidelity": ("Image fidelity", "Frechet distance of simple image features to the ground truth of the same person."),
    "drift": (
        "Stability",
        "Change of identity and colour from the first to the last 15 % of the long conversation: 1 is as stable as "
        "the ground truth, 0 is as far off as another person.",
    ),
}
"""Title and description of every anchored score, in page order."""


def enlarge(video: Array) -> Array:
    """Enlarge a uint8 video [T, H, W, 3] by SCALE for viewing."""
    import cv2

    side = video.shape[2] * SCALE, video.shape[1] * SCALE
    return np.stack([cv2.resize(frame, side, interpolation=cv2.INTER_CUBIC) for frame in video])


def write_video(path: Path, videos: list[Array], audio: Array) -> None:
    """Write videos of equal length side by side with one audio track, second by second."""
    height, width = videos[0].shape[1] * SCALE, sum(v.shape[2] for v in videos) * SCALE
    with Mp4Writer(path, height_px=height, width_px=width, crf=20) as writer:
        for start in range(0, len(videos[0]), VIDEO_FPS):
            row = [enlarge(v[start : start + VIDEO_FPS]) for v in videos]
            writer.write(
                np.concatenate(row, axis=2),
                audio[start * SAMPLES_PER_FRAME : (start + len(row[0])) * SAMPLES_PER_FRAME],
            )


def contact_sheet(path: Path, rows: list[Array], columns: int = 12) -> None:
    """Write a PNG with one row of evenly spaced frames per video."""
    import cv2

    picked = [v[np.linspace(0, len(v) - 1, columns).round().astype(int)] for v in rows]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in picked])
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet[:, :, ::-1]):
        raise ValueError(f"{path} could not be written: check the disk")


def curve_svg(ground_truth: Array, generated: Array, state: Array, *, width: int = 900, height: int = 110) -> str:
    """Draw two signals over time as SVG, over bands for speaking and listening.

    Args:
        ground_truth: float [T].
        generated: float [T].
        state: uint8 [T].
        width: width of the view box.
        height: height of the view box.
    """
    low, high = min(ground_truth.min(), generated.min()), max(ground_truth.max(), generated.max())
    span = max(float(high - low), 1e-6)

    def path(signal: Array) -> str:
        x = np.arange(len(signal)) * width / len(signal)
        y = height - 4 - (signal - low) / span * (height - 8)
        return "M" + " L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))

    edges = np.flatnonzero(np.diff(state)) + 1
    bands = []
    for start, stop in zip([0, *edges], [*edges, len(state)], strict=True):
        kind = {SPEAK: "speak", LISTEN: "listen"}.get(int(state[start]))
        if kind:
            x, wide = start * width / len(state), (stop - start) * width / len(state)
            bands.append(f'<rect class="{kind}" x="{x:.1f}" y="0" width="{wide:.1f}" height="{height}"/>')
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(bands)}'
        f'<path class="ground-truth" d="{path(ground_truth)}"/><path class="generated" d="{path(generated)}"/></svg>'
    )


def write_report(
    folder: Path, report: EvaluateReport, views: list[CaseView], talk: CaseView, track: Callable[..., Any]
) -> None:
    """Write the report folder.

    Args:
        folder: report folder.
        report: scores and figures.
        views: the cases.
        talk: the long conversation.
        track: `progress.track`.
    """
    import jinja2

    rows = []
    for view in track(views, "report"):
        name = f"videos/{view.case.name}.mp4"
        audio = mix(view.case.speak, view.case.ground_truth.listen)
        write_video(folder / name, [view.case.frames, view.generated, view.reconstructed], audio)
        rows.append(_row(view, name))
    audio = mix(talk.case.speak, talk.case.ground_truth.listen)
    write_video(folder / "talk.mp4", [talk.generated], audio)
    contact_sheet(folder / "talk.png", [talk.case.frames, talk.generated])
    write_json(folder / "report.json", report)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")
    cards = [(title, text, key) for key, (title, text) in CARDS.items() if key in report.scores]
    html = page.render(report=report, cards=cards, rows=rows, talk=_row(talk, "talk.mp4"), number=number)
    (folder / "report.html").write_text(html)


def _row(view: CaseView, video: str) -> dict[str, Any]:
    import markupsafe

    state = view.case.ground_truth.state
    curves = [(title, markupsafe.Markup(curve_svg(a, b, state))) for title, a, b in view.curves]
    return {"name": view.case.name, "video": video, "text": view.case.text, "curves": curves, "facts": view.facts}


def number(value: Any, digits: int = 2) -> str:
    """Format a figure for the page; "-" if there is none."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
