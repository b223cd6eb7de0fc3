"""The whole step on small corpora: outputs, rejections, resuming, executors."""

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import webdataset

from components.curate.config import CurationConfig, StateConfig
from components.curate.run import analyse, analysis_pass, clip_pass
from components.curate.run.job import Job
from components.curate.scorers import COLUMNS as SCORES
from components.curate.step import curate
from components.dataset.manifest import read_rows, schema
from components.dataset.states import decode_states
from components.runtime import part_timing
from components.runtime.runner import StepRecord, run_step
from components.runtime.steps import STEPS
from lpm_model.config import REFERENCE_KINDS
from lpm_model.digests import dataset_digest, folder_digest, output_digest
from lpm_model.progress import NoProgress
from tests.curate.corpus import make_raw, rejected_files, without_audio
from tests.curate.spies import must_not_be_called

OUTPUTS = {
    "manifest.parquet", "dataset.json", "curation.json", "curation.html", "timing.json", "shards", "previews",
    "validation",
}  # fmt: skip


def test_dataset_folder_is_complete(dataset: Path, report: dict[str, Any]) -> None:
    assert {path.name for path in dataset.iterdir()} == OUTPUTS
    described = json.loads((dataset / "dataset.json").read_text())
    assert described["digest"] == report["dataset_digest"] == dataset_digest(dataset) == output_digest(dataset)
    assert described["clips"] == report["clips"] >= 4
    assert (dataset / "validation" / "index.html").exists()
    page = (dataset / "curation.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "<td>broken.mp4</td><td>not readable</td><td>by ingest</td>" in page
    assert "http://" not in page
    assert "https://" not in page


def test_timing_lists_the_parts_of_both_passes(dataset: Path) -> None:
    timing = json.loads((dataset / "timing.json").read_text())
    for name, parts in (
        ("analysis", ("loading networks", "decoding", "faces", "stream: text", "writing analysis")),
        (
            "clips",
            (
                "loading networks",
                "crops",
                "reference candidates",
                "score: sync",
                "latents",
                "reference latents",
                "audio tracks",
                "thumbnails",
                "previews",
                "manifest rows",
                "writing clips",
                "writing rows",
            ),
        ),
    ):
        figures = timing[name]
        assert figures["video_s"] == 24.0
        assert set(parts) <= set(figures["parts_s"])
        assert 0 < sum(figures["parts_s"].values()) <= figures["seconds"]
    rows = part_timing.table_rows(timing)
    assert sum(row["percent"] for row in rows) == pytest.approx(200, abs=2)
    page = (dataset / "curation.html").read_text()
    assert all(f'<td>{row["part"]}</td><td class="number">{row["ms"]}</td>' in page for row in rows)


def test_manifest_rows_follow_the_schema(dataset: Path) -> None:
    rows = read_rows(dataset / "manifest.parquet")
    for row in rows:
        assert set(row) == set(schema(SCORES).names)
        assert row["frames"] % 4 == 1
        states = decode_states(row["states"])
        assert len(states) == row["frames"]
        assert set(states) <= {0, 1, 2}
        assert row["kept"] == (row["reason"] == "")
        assert row["licence"] == "CC0-1.0"
        assert row["consent_ref"] == "test"
        assert row["audio_start_sample"] == (row["start_frame"] + 1) * 1000
        caption = json.loads(row["caption_fields"])
        spans = caption["segments"]
        assert [0, *(span["stop"] for span in spans)] == [*(span["start"] for span in spans), row["frames"]]
        for fields in (caption["fields"], *(span["fields"] for span in spans)):
            assert all(set(field) == {"value", "modality", "model", "version"} for field in fields.values())
        assert all(len(row[f"{name}_track"]) == row["frames"] for name in ("speech", "mouth", "loudness"))
        assert all(
            row[name] is not None
            for name in SCORES
            if name in ("face_px", "luminance", "music_ratio", "confidence", "text_ratio", "frozen_s")
        )
        assert row["partner_source_id"] != row["source_id"]
        for reference in row["references"]:
            assert not row["start_frame"] <= reference["frame"] < row["start_frame"] + row["frames"]
            assert reference["kind"] in REFERENCE_KINDS
            assert reference["copy_distance"] >= 0.005
    assert {state for row in rows for state, _ in row["states"]} == {0, 1, 2}


def test_square_one_person_video_is_not_resampled(dataset: Path) -> None:
    for row in read_rows(dataset / "manifest.parquet"):
        assert row["crop_box"] == [0, 0, 128, 128]
        assert not row["resampled"]


def test_funnel_adds_up(report: dict[str, Any], dataset: Path) -> None:
    for stage in report["funnel"]:
        assert stage["in"] == stage["out"] + sum(stage["reasons"].values())
    stages = {stage["stage"]: stage for stage in report["funnel"]}
    rows = read_rows(dataset / "manifest.parquet")
    assert stages["quality"]["in"] == len(rows)
    assert stages["quality"]["out"] == stages["references"]["in"]
    assert stages["references"]["out"] == sum(row["kept"] for row in rows) == report["clips"]


def test_shards_read_back(dataset: Path) -> None:
    rows = {row["clip_id"]: row for row in read_rows(dataset / "manifest.parquet")}
    tars = sorted(str(path) for path in (dataset / "shards").glob("*.tar"))
    seen = 0
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        row, facts = rows[sample["__key__"]], json.loads(sample["json"])
        arrays = {
            name: np.load(io.BytesIO(sample[f"{name}.npy"])) for name in ("latents", "references", "speak", "listen")
        }
        assert arrays["latents"].dtype == np.float16
        assert arrays["latents"].shape == (4, 1 + (row["frames"] - 1) // 4, 16, 16)
        assert arrays["references"].shape == (len(facts["reference_kinds"]), 4, 16, 16)
        assert facts["reference_kinds"][0] == "global"
        assert arrays["speak"].shape == arrays["listen"].shape == ((row["frames"] - 1) * 1000,)
        assert arrays["speak"].dtype == arrays["listen"].dtype == np.int16
        assert facts["states"] == row["states"]
        assert facts["size_px"] == 128
        seen += 1
    assert seen == sum(row["kept"] for row in rows.values())


def test_shard_audio_separates_both_sides(dataset: Path, conversation: Path) -> None:
    """The person's voice is in `speak` and the partner's in `listen`, nearly alone."""
    rows = {row["clip_id"]: row for row in read_rows(dataset / "manifest.parquet")}
    correlations = {"speak": [], "listen": []}
    for sample in webdataset.WebDataset([str(p) for p in (dataset / "shards").glob("*.tar")], shardshuffle=False):
        row = rows[sample["__key__"]]
        span = slice(row["audio_start_sample"], row["audio_start_sample"] + row["audio_samples"])
        with np.load(conversation / "ground_truth" / f"{row['source_id']}.npz") as ground_truth:
            for name in correlations:
                given = np.load(io.BytesIO(sample[f"{name}.npy"])).astype(float)
                clean = ground_truth[f"{name}_pcm"][span].astype(float)
                if np.abs(clean).max() > 3000 and len(clean) == len(given):
                    correlations[name].append(np.corrcoef(given, clean)[0, 1])
    assert np.mean(correlations["speak"]) > 0.9
    assert np.mean(correlations["listen"]) > 0.9


@pytest.fixture(scope="module")
def small(config: CurationConfig, tmp_path_factory: pytest.TempPathFactory, sides: list[Path]) -> Path:
    """A corpus of one good file and one for each reason to be rejected."""
    home = tmp_path_factory.mktemp("small")
    return make_raw(home / "raw", [sides[0], *rejected_files(home / "files", sides[1]).values()])


def test_bad_files_are_rejected_with_reasons_and_the_run_continues(
    small: Path, config: CurationConfig, tmp_path: Path
) -> None:
    result = curate(small, tmp_path / "dataset", config, NoProgress())
    assert result.clips > 0
    assert {Path(item["file"]).stem: item["reason"] for item in result.rejected} == {
        "empty": "empty",
        "corrupt": "corrupt",
        "cut": "corrupt",
        "playlist": "corrupt",
        "no_audio": "no_audio",
        "no_face": "no_face",
        "too_short": "too_short",
    }
    assert all(item["detail"] for item in result.rejected)


def test_silent_video_is_idle_if_audio_is_not_required(
    sides: list[Path], config: CurationConfig, tmp_path: Path
) -> None:
    silent = without_audio(sides[0], tmp_path / "silent.mp4")
    relaxed = dataclasses.replace(config, require_audio=False, require_reference=False, min_retention=0.0)
    result = curate(make_raw(tmp_path / "raw", [silent]), tmp_path / "dataset", relaxed, NoProgress())
    assert set(result.state_seconds) == {"idle"}


def test_interrupted_run_resumes_to_the_same_bytes(
    sides: list[Path], config: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_raw(tmp_path / "raw", sides)
    curate(raw, tmp_path / "whole", config, NoProgress())
    real = clip_pass.make_clips
    calls = []

    def interrupted(inputs: Any, store: Any) -> Any:
        calls.append(inputs.analysis.source.source_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(inputs, store)

    monkeypatch.setattr(clip_pass, "make_clips", interrupted)
    with pytest.raises(KeyboardInterrupt):
        curate(raw, tmp_path / "resumed", config, NoProgress())
    assert not (tmp_path / "resumed").exists()
    monkeypatch.setattr(analyse, "analyse", must_not_be_called("analyse"))
    curate(raw, tmp_path / "resumed", config, NoProgress())
    assert calls == [calls[0], calls[1], calls[1]]
    for name in ("whole", "resumed"):
        (tmp_path / name / "timing.json").unlink()  # only the clock may differ
        page = tmp_path / name / "curation.html"
        page.write_text(re.sub(r'<table id="cost">.*?</table>', "", page.read_text(), count=1, flags=re.DOTALL))
    assert folder_digest(tmp_path / "resumed") == folder_digest(tmp_path / "whole")


def test_transient_failure_is_retried_alone(
    sides: list[Path],
    config: CurationConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """First both sources fail, then one; then the same command processes it and repeats nothing."""
    raw = make_raw(tmp_path / "raw", sides, conversation_id=None, camera=None)
    quick = dataclasses.replace(config, states=StateConfig(match_cameras_max=0), mesh_stride=6, min_retention=0.0)
    curate(raw, tmp_path / "whole", quick, NoProgress())
    real, analysed = analysis_pass._analyse, []
    failing = {source.stem for source in sides}

    def flaky(job: Job) -> dict[str, Any]:
        analysed.append(job.source.source_id)
        if job.source.source_id in failing:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "roi_cache.yuv").write_bytes(b"left by a killed worker")
            raise MemoryError("taken by another process")
        return real(job)

    monkeypatch.setattr(analysis_pass, "_analyse", flaky)

    def run() -> StepRecord:
        return run_step(STEPS["curate"], {"raw": raw}, tmp_path / "out", quick, NoProgress(), cache=tmp_path / "cache")

    with pytest.raises(ValueError, match=r"no clip is left(.|\n)*failed 2"):
        run()
    failing.remove(sides[0].stem)
    assert run().report["num_retryable"] == 1
    assert not list((tmp_path / "cache").rglob("roi_cache.*"))
    reason = "failed: MemoryError: taken by another process; run the same command again to retry it"
    assert f"{sides[1].name} is skipped: {reason}" in caplog.text
    assert sorted(analysed) == sorted([*(side.stem for side in sides)] * 2)
    failing.clear()
    analysed.clear()
    made = mock.Mock(wraps=clip_pass.make_clips)
    monkeypatch.setattr(clip_pass, "make_clips", made)
    record = run()
    assert (record.cached, record.report["rejected"], record.report["num_retryable"]) == (False, [], 0)
    assert analysed == [sides[1].stem]
    assert [call.args[0].analysis.source.source_id for call in made.call_args_list] == [sides[1].stem]
    assert record.report["dataset_digest"] == dataset_digest(tmp_path / "whole")
    assert run().cached
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_worker_processes_give_the_same_bytes(
    sides: list[Path], config: CurationConfig, dataset: Path, tmp_path: Path
) -> None:
    two = dataclasses.replace(config, executor="process", workers=2)
    result = curate(make_raw(tmp_path / "raw", sides), tmp_path / "dataset", two, NoProgress())
    assert result.dataset_digest == dataset_digest(dataset)


@pytest.mark.slow
def test_ray_gives_the_same_bytes(sides: list[Path], config: CurationConfig, dataset: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    except Exception as error:  # Ray raises bare exceptions where a machine is too busy or too small for it
        pytest.skip(f"Ray cannot start here: {error}")
    try:
        with_ray = dataclasses.replace(config, executor="ray")
        result = curate(make_raw(tmp_path / "raw", sides), tmp_path / "dataset", with_ray, NoProgress())
    finally:
        ray.shutdown()
    assert result.dataset_digest == dataset_digest(dataset)


def test_no_clip_left_is_an_error_with_the_funnel(sides: list[Path], config: CurationConfig, tmp_path: Path) -> None:
    strict = dataclasses.replace(config, thresholds={"min_face_px": 1000.0})
    raw = make_raw(tmp_path / "raw", sides[:1])
    bars = mock.Mock(wraps=NoProgress())
    with pytest.raises(ValueError, match=r"no clip is left(.|\n)*face_px_below_min"):
        curate(raw, tmp_path / "dataset", strict, bars)
    assert {call.args[1] for call in bars.track.call_args_list} == {"analysing sources", "making clips"}
    bounded = dataclasses.replace(config, max_retention=0.1)
    with pytest.raises(ValueError, match=r"outside 0\.02\.\.0\.1"):
        curate(raw, tmp_path / "dataset", bounded, NoProgress())


def test_duplicates_and_two_shots_are_skipped(
    conversation: Path, sides: list[Path], config: CurationConfig, tmp_path: Path
) -> None:
    two_shot = next((conversation / "media").glob("*_two_shot.mp4"))
    copy = tmp_path / "copy.mp4"
    shutil.copyfile(sides[1], copy)
    raw = make_raw(tmp_path / "raw", [*sides, two_shot, copy])
    result = curate(raw, tmp_path / "dataset", config, NoProgress())
    assert sorted(item["reason"] for item in result.rejected) == ["duplicate", "two_shot_skipped"]


def test_invalid_sources_jsonl_is_explained(config: CurationConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lpm ingest"):
        curate(tmp_path, tmp_path / "dataset", config, NoProgress())
    (tmp_path / "sources.jsonl").write_text('{"source_id": "../up", "file": "x"}\n')
    with pytest.raises(ValueError, match="line 1"):
        curate(tmp_path, tmp_path / "dataset", config, NoProgress())
