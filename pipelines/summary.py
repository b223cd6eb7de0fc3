"""summary.json of a run: times, funnel, scores, model, dataset, paths."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.runtime.steps import STEPS
from lpm_model.files import read_json, write_json

SCORES = ("sync", "listening", "identity", "psnr_db", "drift")
"""Scores that every run reports."""
MAX_LISTED = 5
"""Maximum number of files with one rejection reason that are listed one by one."""


def build_summary(run_dir: Path) -> dict[str, Any]:
    """Collect the summary from the reports of a run's steps.

    Raises:
        ValueError: a step's record or report is missing.
    """
    records = {verb: read_json(run_dir / "steps" / f"{verb}.json") for verb in STEPS}
    dataset = read_json(run_dir / "dataset" / "dataset.json")
    scores = read_json(run_dir / "report" / "report.json")["scores"]
    deployed = read_json(run_dir / "release" / "deploy.json")
    talk = run_dir / "report" / "talk.mp4"
    return {
        "steps": {
            verb: {name: record[name] for name in ("seconds", "peak_rss_mb", "cached")}
            for verb, record in records.items()
        },
        "funnel": [
            {name: stage[name] for name in ("stage", "in", "out", "reasons")}
            for stage in read_json(run_dir / "dataset" / "curation.json")["funnel"]
        ],
        "scores": {name: scores.get(name) for name in SCORES},
        "model": {name: deployed[name] for name in ("name", "version", "alias", "digest")},
        "dataset": {name: dataset[name] for name in ("digest", "clips", "seconds")},
        "paths": {
            "report": str(run_dir / "report" / "report.html"),
            "talk": str(talk) if talk.exists() else "",
        },
    }


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Write summary.json of a successful run, and point `latest` at it."""
    summary = build_summary(run_dir)
    write_json(run_dir / "summary.json", summary)
    point_latest(run_dir)
    return summary


def point_latest(run_dir: Path) -> None:
    """Point the link `latest` next to a run at it, atomically."""
    temporary = run_dir.with_name(".latest.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run_dir.name, target_is_directory=True)
    temporary.replace(run_dir.with_name("latest"))


def notes(run_dir: Path) -> list[str]:
    """Return the lines below the table: rejected files, people of the benchmark, promotion decision."""
    measured = str(read_json(run_dir / "report" / "report.json").get("bench", {}).get("note", ""))
    deployed = read_json(run_dir / "release" / "deploy.json")
    return [
        *_rejections(rejected_sources(run_dir)),
        *([f"measured on: {measured}"] if measured else []),
        decision_line(deployed),
    ]


def _rejections(rejected: list[tuple[str, str]]) -> list[str]:
    """Return one line per rejected file, or one per reason that many files share."""
    files: dict[str, list[str]] = {}
    for file, reason in rejected:
        files.setdefault(reason, []).append(file)
    lines: list[str] = []
    for reason, names in files.items():
        if len(names) > MAX_LISTED:
            lines.append(f"rejected {len(names)} files: {reason} ({names[0]} ... {names[-1]})")
        else:
            lines.extend(f"rejected {name}: {reason}" for name in names)
    return lines


def decision_line(deployed: Mapping[str, Any]) -> str:
    """Return the promotion decision as one sentence."""
    line = f"{deployed['name']} version {deployed['version']} is {deployed['alias']}: {'; '.join(deployed['reasons'])}"
    if deployed["released_version"] != deployed["version"]:
        line += f"; version {deployed['released_version']} stays in service"
    return line


def outcome_line(verb: str, report: Mapping[str, Any], output: Path) -> str:
    """Return the result of a step as one sentence; "" for steps without one."""
    if verb == "ingest":
        lost = len(report["rejected"])
        details = f": {output / 'ingest.json'}" if lost else ""
        return f"{report['sources']} recordings accepted, {lost} rejected{details}"
    if verb == "curate":
        clips, lost = report["clips"], report["clips_dropped"]
        reasons: Counter[str] = Counter()
        for stage in report["funnel"]:
            reasons.update(stage["reasons"] if stage["unit"] == "clip" else {})
        most = f", mostly {reasons.most_common(1)[0][0]}" if reasons else ""
        return (
            f"{clips} of {clips + lost} clips kept ({report['seconds']:.0f} s), {lost} dropped{most}"
            f"{_sources_line(report, output)}: open {output / 'curation.html'}"
        )
    return decision_line(report) if verb == "deploy" else ""


def _sources_line(report: Mapping[str, Any], output: Path) -> str:
    """Return the end of curate's sentence: rejected files and reused analyses."""
    by_ingest, by_curate = len(report["refused_by_ingest"]), len(report["rejected"])
    line = ""
    if by_ingest or by_curate:
        retryable = report["num_retryable"]
        notes = [f"{by_ingest} by ingest"] * bool(by_ingest)
        notes += [f"transient failures: {retryable}, run the same command again to retry"] * bool(retryable)
        line += f"; {by_ingest + by_curate} of {by_ingest + report['sources']} files rejected"
        line += f" ({', '.join(notes)})" if notes else ""
    reused = read_json(output / "timing.json")["analysis"]["reused"]
    return line + (f"; {reused} of {report['sources']} analyses reused" if reused else "")


def rejected_sources(run_dir: Path) -> list[tuple[str, str]]:
    """Return the source files that ingest and curate rejected, each with the reason."""
    found: list[tuple[str, str]] = []
    for path in (run_dir / "raw" / "ingest.json", run_dir / "dataset" / "curation.json"):
        if path.exists():
            report: Mapping[str, Any] = read_json(path)
            found.extend((str(item["file"]), str(item["reason"])) for item in report.get("rejected", []))
    return found
