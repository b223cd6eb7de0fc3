"""What stands beside manifest and shards: dataset.json, curation.json, the Data Docs and the page."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.curate.clips.references import REFERENCE_REASONS
from components.curate.report.page import write_page
from components.curate.run.partial_results import PASSING
from components.dataset.states import STATE_NAMES
from components.dataset.validate import validate
from components.runtime import part_timing
from lpm_model.config import VIDEO_FPS
from lpm_model.digests import dataset_digest, file_digest
from lpm_model.files import read_json, write_json

Rows = Sequence[Mapping[str, Any]]


def totals(rows: Rows) -> dict[str, Any]:
    """Clips, seconds and seconds by state of the kept rows."""
    kept = [row for row in rows if row["kept"]]
    frames: Counter[str] = Counter()
    for row in kept:
        for state, length in row["states"]:
            frames[STATE_NAMES[state]] += length
    return {
        "clips": len(kept),
        "seconds": round(sum(row["seconds"] for row in kept), 3),
        "state_seconds": {name: round(count / VIDEO_FPS, 3) for name, count in sorted(frames.items())},
    }


def contents(folder: Path, rows: Rows) -> dict[str, Any]:
    """The part of dataset.json that follows from manifest and shards."""
    files = [folder / "manifest.parquet", *sorted((folder / "shards").glob("*.tar"))]
    kept = [row for row in rows if row["kept"]]
    return {
        "digest": dataset_digest(folder),
        **totals(rows),
        "sources": len({row["source_id"] for row in kept}),
        "shards": sorted({row["shard"] for row in rows if row["shard"]}),
        "source_digests": sorted({row["source_sha256"] for row in kept}),
        "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files},
    }


def passing(rejected: Iterable[Mapping[str, Any]]) -> int:
    """How many sources were left out for reasons that may not hold another time."""
    return sum(item["reason"] in PASSING for item in rejected)


def clip_stages(rows: Rows) -> list[dict[str, Any]]:
    """The funnel's two stages over clips."""
    alone = Counter(row["reason"] for row in rows if row["reason"] in REFERENCE_REASONS)
    missed = Counter(row["reason"] for row in rows if row["reason"] and row["reason"] not in REFERENCE_REASONS)
    left = len(rows) - missed.total()
    return [
        {"stage": "quality", "unit": "clip", "in": len(rows), "out": left, "reasons": dict(sorted(missed.items()))},
        {
            "stage": "references",
            "unit": "clip",
            "in": left,
            "out": left - alone.total(),
            "reasons": dict(sorted(alone.items())),
        },
    ]


def page(folder: Path, rows: Rows, report: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Write curation.html over what lies in the folder."""
    facts = {
        "clips": report["clips"],
        "seconds": _rounded(report["seconds"]),
        **{f"seconds {name}": _rounded(value) for name, value in report["state_seconds"].items()},
        "sources with a kept clip": f"{report['sources_used']} of {report['sources']}",
        "retention": f"{100 * report['retention']:.1f} %",
    }
    rejected = report["rejected"] + [{**item, "detail": "by ingest"} for item in report["refused_by_ingest"]]
    costs = part_timing.table(read_json(folder / "timing.json"))
    write_page(folder, report["funnel"], rows, rejected, facts, described["thresholds"], costs)


def _rounded(seconds: float) -> str:
    """Seconds as a person reads them: tenths below 100."""
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"


def refresh(given: Path, folder: Path, rows: Rows, files: Iterable[str], sources: int) -> str:
    """Write everything beside manifest and shards anew, after rows and sources were removed.

    The funnel's stages over people and frames stay as they were, and say so (`before_removal`): to count them anew,
    both passes would have to run again.

    Args:
        given: the dataset before.
        folder: the dataset after; has manifest, shards and previews.
        rows: the rows that are left.
        files: paths of the removed sources, and of copies of them that ingest refused.
        sources: how many were removed.

    Returns:
        The new digest.
    """
    described = {**read_json(given / "dataset.json"), **contents(folder, rows)}
    old = read_json(given / "curation.json")
    gone = set(files)
    rejected = [item for item in old["rejected"] if item["file"] not in gone]
    used = sources - (len(old["rejected"]) - len(rejected))
    funnel = []
    for stage in old["funnel"]:
        if stage["stage"] == "sources":
            reasons = {**stage["reasons"], "forgotten": stage["reasons"].get("forgotten", 0) + used}
            stage = {**stage, "out": stage["out"] - used, "reasons": reasons}
        elif stage["unit"] != "clip":
            stage = {**stage, "before_removal": True}
        funnel.append(stage)
    fresh = {stage["stage"]: stage for stage in clip_stages(rows)}
    seen_s = old["seconds"] / old["retention"] if old["retention"] else 1.0
    report = {
        **old,
        **totals(rows),
        "dataset_digest": described["digest"],
        "sources_used": described["sources"],
        "clips_dropped": len(rows) - described["clips"],
        "retention": round(described["seconds"] / seen_s, 4),
        "funnel": [fresh.get(stage["stage"], stage) for stage in funnel],
        "rejected": rejected,
        "refused_by_ingest": [item for item in old["refused_by_ingest"] if item["file"] not in gone],
        "to_try_again": passing(rejected),
    }
    write_json(folder / "dataset.json", described)
    write_json(folder / "curation.json", report)
    if rows and (given / "validation").is_dir():
        validate(rows, folder, tuple(described["clip_frames"]))
    page(folder, rows, report, described)
    return str(described["digest"])
