"""summary.json of a run: times, funnel, scores, model, dataset, paths."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.runtime.steps import STEPS
from lpm_model.files import read_json, write_json

SCORES = ("sync", "listening", "identity", "psnr_db", "drift")
"""Scores every run reports."""
MANY = 5
"""Files rejected for one reason that are still named one by one."""


def build_summary(run_dir: Path) -> dict[str, Any]:
    """Collect what the steps of a run wrote.

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
    """Write summary.json of a run that has ended well, and point `latest` at it."""
    summary = build_summary(run_dir)
    write_json(run_dir / "summary.json", summary)
    point_latest(run_dir)
    return summary


def point_latest(run_dir: Path) -> None:
    """Make `latest` beside a run point at it, in one step."""
    temporary = run_dir.with_name(".latest.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run_dir.name, target_is_directory=True)
    temporary.replace(run_dir.with_name("latest"))


def notes(run_dir: Path) -> list[str]:
    """What a reader of the table should know beside it: refused files, the benchmark's people, the gate's decision."""
    measured = str(read_json(run_dir / "report" / "report.json").get("bench", {}).get("note", ""))
    deployed = read_json(run_dir / "release" / "deploy.json")
    return [
        *_rejections(rejected_sources(run_dir)),
        *([f"measured on: {measured}"] if measured else []),
        decision_line(deployed),
    ]


def _rejections(rejected: list[tuple[str, str]]) -> list[str]:
    """A line a file; one for all files where many have the same reason."""
    files: dict[str, list[str]] = {}
    for file, reason in rejected:
        files.setdefault(reason, []).append(file)
    lines: list[str] = []
    for reason, names in files.items():
        if len(names) > MANY:
            lines.append(f"rejected {len(names)} files: {reason} ({names[0]} ... {names[-1]})")
        else:
            lines.extend(f"rejected {name}: {reason}" for name in names)
    return lines


def decision_line(deployed: Mapping[str, Any]) -> str:
    """What deploy decided, in one sentence."""
    line = f"{deployed['name']} version {deployed['version']} is {deployed['alias']}: {'; '.join(deployed['reasons'])}"
    if deployed["released_version"] != deployed["version"]:
        line += f"; version {deployed['released_version']} stays in service"
    return line


def outcome_line(verb: str, report: Mapping[str, Any], output: Path) -> str:
    """What a step gave, in one sentence; "" for those whose last line says enough."""
    if verb == "ingest":
        lost = len(report["rejected"])
        return f"{report['sources']} recordings taken, {lost} refused" + (f": {output / 'ingest.json'}" if lost else "")
    if verb == "curate":
        clips, lost = report["clips"], report["clips_dropped"]
        reasons: Counter[str] = Counter()
        for stage in report["funnel"]:
            reasons.update(stage["reasons"] if stage["unit"] == "clip" else {})
        most = f", most of them: {reasons.most_common(1)[0][0]}" if reasons else ""
        return (
            f"{clips} of {clips + lost} clips kept ({report['seconds']:.0f} s), {lost} dropped{most}"
            f"{_sources_line(report, output)}: open {output / 'curation.html'}"
        )
    return decision_line(report) if verb == "deploy" else ""


def _sources_line(report: Mapping[str, Any], output: Path) -> str:
    """Files left out of all that there were, and sources that an earlier run has looked at, as parts of a sentence."""
    before, left_out = len(report["refused_by_ingest"]), len(report["rejected"])
    line = ""
    if before or left_out:
        again = report["to_try_again"]
        told = [f"{before} by ingest"] * bool(before) + [f"{again} to be tried again by the same command"] * bool(again)
        line += f"; {before + left_out} of {before + report['sources']} files left out"
        line += f" ({', '.join(told)})" if told else ""
    known = read_json(output / "timing.json")["look"]["reused"]
    return line + (f"; {known} of {report['sources']} sources had been looked at before" if known else "")


def rejected_sources(run_dir: Path) -> list[tuple[str, str]]:
    """Source files that a run refused, with the reason, in ingest and in curate."""
    found: list[tuple[str, str]] = []
    for path in (run_dir / "raw" / "ingest.json", run_dir / "dataset" / "curation.json"):
        if path.exists():
            report: Mapping[str, Any] = read_json(path)
            found.extend((str(item["file"]), str(item["reason"])) for item in report.get("rejected", []))
    return found
