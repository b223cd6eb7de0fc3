"""The files next to manifest and shards: dataset.json, curation.json, the Data Docs and the page."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.curate.clips.references import REFERENCE_REASONS
from components.curate.report.page import write_page
from components.curate.run.partial_results import RETRYABLE
from components.dataset.states import STATE_NAMES
from components.dataset.validate import validate
from components.runtime import part_timing
from lpm_model.config import VIDEO_FPS
from lpm_model.digests import dataset_digest, file_digest
from lpm_model.files import read_json, write_json

Rows = Sequence[Mapping[str, Any]]
_STATE_LABELS = {"speak": "speaking", "listen": "listening", "idle": "idle", "discard": "discarded"}


def totals(rows: Rows) -> dict[str, Any]:
    """Return the number of clips, the seconds, and the seconds by state of the kept rows."""
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
    """Return the part of dataset.json that is derived from manifest and shards."""
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


def count_retryable(rejected: Iterable[Mapping[str, Any]]) -> int:
    """Return how many sources were rejected for transient failures."""
    return sum(item["reason"] in RETRYABLE for item in rejected)


def clip_stages(rows: Rows) -> list[dict[str, Any]]:
    """Return the funnel's two stages over clips."""
    no_reference = Counter(row["reason"] for row in rows if row["reason"] in REFERENCE_REASONS)
    rejected = Counter(row["reason"] for row in rows if row["reason"] and row["reason"] not in REFERENCE_REASONS)
    passed = len(rows) - rejected.total()
    return [
        {"stage": "quality", "unit": "clip", "in": len(rows), "out": passed, "reasons": dict(sorted(rejected.items()))},
        {
            "stage": "references",
            "unit": "clip",
            "in": passed,
            "out": passed - no_reference.total(),
            "reasons": dict(sorted(no_reference.items())),
        },
    ]


def page(folder: Path, rows: Rows, report: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Write curation.html for the dataset in a folder."""
    facts = {
        "clips": report["clips"],
        "seconds": _rounded(report["seconds"]),
        **{f"seconds {_STATE_LABELS[name]}": _rounded(value) for name, value in report["state_seconds"].items()},
        "sources with a kept clip": f"{report['sources_used']} of {report['sources']}",
        "retention": f"{100 * report['retention']:.1f} %",
    }
    rejected = report["rejected"] + [{**item, "detail": "by ingest"} for item in report["refused_by_ingest"]]
    costs = part_timing.table_rows(read_json(folder / "timing.json"))
    write_page(folder, report["funnel"], rows, rejected, facts, described["thresholds"], costs)


def _rounded(seconds: float) -> str:
    """Format seconds, with tenths below 100."""
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"


def rewrite_reports(given: Path, folder: Path, rows: Rows, files: Iterable[str], sources: int) -> str:
    """Rewrite everything next to manifest and shards after rows and sources were erased.

    The funnel's stages over people and frames keep their counts and are marked (`before_erase`), because counting them
    again would need both passes.

    Args:
        given: the dataset before the erasure.
        folder: the dataset after it, with manifest, shards and previews.
        rows: the remaining rows.
        files: paths of the erased sources, and of copies of them that ingest rejected.
        sources: number of erased sources.

    Returns:
        The dataset's new digest.
    """
    described = {**read_json(given / "dataset.json"), **contents(folder, rows)}
    old = read_json(given / "curation.json")
    erased = set(files)
    rejected = [item for item in old["rejected"] if item["file"] not in erased]
    used = sources - (len(old["rejected"]) - len(rejected))
    funnel = []
    for stage in old["funnel"]:
        if stage["stage"] == "sources":
            reasons = {**stage["reasons"], "erased": stage["reasons"].get("erased", 0) + used}
            stage = {**stage, "out": stage["out"] - used, "reasons": reasons}
        elif stage["unit"] != "clip":
            stage = {**stage, "before_erase": True}
        funnel.append(stage)
    recounted = {stage["stage"]: stage for stage in clip_stages(rows)}
    seen_s = old["seconds"] / old["retention"] if old["retention"] else 1.0
    report = {
        **old,
        **totals(rows),
        "dataset_digest": described["digest"],
        "sources_used": described["sources"],
        "clips_dropped": len(rows) - described["clips"],
        "retention": round(described["seconds"] / seen_s, 4),
        "funnel": [recounted.get(stage["stage"], stage) for stage in funnel],
        "rejected": rejected,
        "refused_by_ingest": [item for item in old["refused_by_ingest"] if item["file"] not in erased],
        "num_retryable": count_retryable(rejected),
    }
    write_json(folder / "dataset.json", described)
    write_json(folder / "curation.json", report)
    if rows and (given / "validation").is_dir():
        validate(rows, folder, tuple(described["clip_frames"]))
    page(folder, rows, report, described)
    return str(described["digest"])
