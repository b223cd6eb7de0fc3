"""summary.json: exactly the agreed keys, and the link to the latest run."""

from pathlib import Path

import pytest

from components.runtime.steps import STEPS
from lpm_model.files import read_json, write_json
from pipelines.summary import build_summary, notes, outcome_line, rejected_sources, write_summary


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "first"
    for verb in STEPS:
        record = {"step": verb, "seconds": 1.5, "peak_rss_mb": 100.0, "cached": verb == "ingest", "report": {}}
        write_json(run / "steps" / f"{verb}.json", record)
    stage = {"stage": "probe", "in": 3, "out": 2, "reasons": {"corrupt": 1}, "seconds_in": 9.0}
    write_json(
        run / "dataset" / "curation.json",
        {"funnel": [stage], "rejected": [{"file": "media/c.mp4", "reason": "no face"}]},
    )
    write_json(run / "dataset" / "dataset.json", {"digest": "ab", "clips": 2, "seconds": 6.0, "size_px": 128})
    write_json(run / "raw" / "ingest.json", {"rejected": [{"file": "bad.mp4", "reason": "not readable"}]})
    scores = {"sync": 0.7, "listening": 0.5, "identity": 0.99, "psnr_db": 31.0, "drift": None, "speed": 2.0}
    write_json(run / "report" / "report.json", {"scores": scores, "bench": {"note": "held-out people"}})
    (run / "report" / "talk.mp4").touch()
    write_json(
        run / "release" / "deploy.json",
        {
            "name": "lpm-online",
            "version": "3",
            "alias": "challenger",
            "digest": "cd",
            "reasons": ["sync 0.3 is worse"],
            "released_version": "2",
        },
    )
    return run


def test_summary_has_the_agreed_shape(run_dir: Path) -> None:
    summary = write_summary(run_dir)
    assert read_json(run_dir.parent / "latest" / "summary.json") == summary
    assert set(summary) == {"steps", "funnel", "scores", "model", "dataset", "paths"}
    assert list(summary["steps"]) == list(STEPS)
    assert summary["steps"]["ingest"] == {"seconds": 1.5, "peak_rss_mb": 100.0, "cached": True}
    assert summary["funnel"] == [{"stage": "probe", "in": 3, "out": 2, "reasons": {"corrupt": 1}}]
    assert summary["scores"] == {"sync": 0.7, "listening": 0.5, "identity": 0.99, "psnr_db": 31.0, "drift": None}
    assert summary["model"] == {"name": "lpm-online", "version": "3", "alias": "challenger", "digest": "cd"}
    assert summary["dataset"] == {"digest": "ab", "clips": 2, "seconds": 6.0}
    assert all(Path(path).is_absolute() for path in summary["paths"].values())


def test_latest_points_to_the_newest_run(run_dir: Path) -> None:
    write_summary(run_dir)
    second = run_dir.rename(run_dir.with_name("second"))
    write_summary(second)
    assert (second.parent / "latest").resolve() == second


def test_rejected_sources_of_both_steps(run_dir: Path) -> None:
    assert rejected_sources(run_dir) == [("bad.mp4", "not readable"), ("media/c.mp4", "no face")]


def test_notes_list_rejections_and_the_promotion_decision(run_dir: Path) -> None:
    assert notes(run_dir) == [
        "rejected bad.mp4: not readable",
        "rejected media/c.mp4: no face",
        "measured on: held-out people",
        "lpm-online version 3 is challenger: sync 0.3 is worse; version 2 stays in service",
    ]


def test_many_rejections_with_one_reason_are_one_line(run_dir: Path) -> None:
    files = [{"file": f"{number}.mp4", "reason": "two_shot_skipped"} for number in range(9)]
    write_json(run_dir / "raw" / "ingest.json", {"rejected": [*files, {"file": "bad.mp4", "reason": "not readable"}]})
    assert notes(run_dir)[:3] == [
        "rejected 9 files: two_shot_skipped (0.mp4 ... 8.mp4)",
        "rejected bad.mp4: not readable",
        "rejected media/c.mp4: no face",
    ]


def test_missing_report_is_named(run_dir: Path) -> None:
    (run_dir / "release" / "deploy.json").unlink()
    with pytest.raises(ValueError, match=r"deploy\.json is missing"):
        build_summary(run_dir)


def test_outcome_lines_of_steps(tmp_path: Path) -> None:
    ingested = {"sources": 5, "rejected": [{}]}
    line = f"5 recordings accepted, 1 rejected: {tmp_path / 'ingest.json'}"
    assert outcome_line("ingest", ingested, tmp_path) == line
    reasons = {"frame": {"no_face": 9}, "clip": {"blur": 1, "text": 2, "no_reference": 1}}
    stages = [{"unit": unit, "reasons": found} for unit, found in reasons.items()]
    whole = {"clips": 6, "clips_dropped": 4, "seconds": 21.4, "funnel": stages, "sources": 3}
    for rejected, by_ingest, retryable, reused, text in (
        (0, 0, 0, 0, ""),
        (0, 0, 0, 2, "; 2 of 3 analyses reused"),
        (1, 0, 1, 2, "; 1 of 3 files rejected (transient failures: 1, run the same command again to retry); "
         "2 of 3 analyses reused"),
        (1, 2, 0, 0, "; 3 of 5 files rejected (2 by ingest)"),
    ):  # fmt: skip
        report = {**whole, "rejected": [{}] * rejected, "num_retryable": retryable}
        report["refused_by_ingest"] = [{}] * by_ingest
        write_json(tmp_path / "timing.json", {"analysis": {"sources": 3 - rejected, "reused": reused}})
        line = f"6 of 10 clips kept (21 s), 4 dropped, mostly text{text}: open {tmp_path / 'curation.html'}"
        assert outcome_line("curate", report, tmp_path) == line
    assert outcome_line("train", {}, tmp_path) == ""
