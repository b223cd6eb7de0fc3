"""Erasing: nothing of a person or a recording is left, nothing else is lost, and it cannot return."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.curate.config import CurationConfig, StateConfig
from components.curate.erase import erase as module
from components.curate.erase.erase import (
    Places,
    erase,
    mlflow_runs_trained_on,
    models_trained_on,
    preview_erase,
)
from components.curate.erase.target import resolve
from components.curate.erase.verify import content_digests, find_digests
from components.curate.step import curate
from components.dataset.manifest import read_rows
from components.dataset.shards import read_shard
from components.dataset.tombstones import TOMBSTONES, Tombstones
from components.dataset.validate import validate
from components.ingest.config import IngestConfig
from components.ingest.step import ingest
from components.runtime.tracking import TrackingConfig, step_run
from lpm_model.digests import dataset_digest, file_digest
from lpm_model.files import write_json
from lpm_model.progress import NoProgress
from tests.curate.corpus import make_raw


@pytest.fixture(scope="module")
def home(sides: list[Path], config: CurationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/ and dataset/ of two people who are not conversation partners."""
    folder = tmp_path_factory.mktemp("apart")
    raw = make_raw(folder / "raw", sides, conversation_id=None, camera=None)
    lines = [json.loads(line) for line in (raw / "sources.jsonl").read_text().splitlines()]
    lines[0]["person_hint"], lines[1]["person_hint"] = "Ada", "Bob"
    (raw / "sources.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    apart = dataclasses.replace(config, clips_per_shard=2, states=StateConfig(match_cameras_max=0))
    curate(raw, folder / "dataset", apart, NoProgress())
    return folder


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """A copy of both folders that a test may change."""
    for name in ("raw", "dataset"):
        shutil.copytree(home / name, tmp_path / name)
    return tmp_path


def members(dataset: Path) -> dict[str, dict[str, bytes]]:
    return {clip: parts for path in sorted((dataset / "shards").glob("*.tar")) for clip, parts in read_shard(path)}


def without_shard(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "shard": ""} for row in rows]


def test_erase_removes_one_person_completely_and_nothing_else(
    copy: Path, sides: list[Path], config: CurationConfig, tmp_path: Path
) -> None:
    dataset, raw = copy / "dataset", copy / "raw"
    before, held = read_rows(dataset / "manifest.parquet"), members(dataset)
    previews = {path.name: file_digest(path) for path in (dataset / "previews").iterdir()}
    ada = {row["clip_id"] for row in before if row["person_id"] == "Ada"}
    assert ada
    assert len(ada) < len(before)
    stones = tmp_path / "cache" / TOMBSTONES
    report = erase(dataset, "identity", "Ada", Places(raw=raw, tombstones=stones))

    rows = read_rows(dataset / "manifest.parquet")
    assert without_shard(rows) == without_shard([row for row in before if row["person_id"] != "Ada"])
    assert members(dataset) == {clip: parts for clip, parts in held.items() if clip not in ada}
    left = {path.name: file_digest(path) for path in (dataset / "previews").iterdir()}
    assert left == {name: digest for name, digest in previews.items() if Path(name).stem not in ada}
    described = json.loads((dataset / "dataset.json").read_text())
    assert described["digest"] == dataset_digest(dataset) == report.after != report.before[0]
    assert file_digest(sides[0]) not in json.dumps(described)
    assert [line["person_hint"] for line in map(json.loads, (raw / "sources.jsonl").open())] == ["Bob"]
    assert not (raw / "media" / sides[0].name).exists()
    assert report.clips == len(ada)
    assert {previews[f"{clip}.jpg"] for clip in ada} <= set(report.items)
    assert find_digests([copy], set(report.items)) == (find_digests([copy], set())[0], [])
    for text in ("Ada", *ada):
        files = [path for path in copy.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
        assert files == []
    validate(rows, dataset, tuple(described["clip_frames"]))
    # Stages that cannot be recounted are marked.
    funnel = json.loads((dataset / "curation.json").read_text())["funnel"]
    assert [stage["stage"] for stage in funnel if stage.get("before_erase")] == ["people", "cut"]
    page = (dataset / "curation.html").read_text()
    assert page.count(", before erasure</text>") == 2
    assert "The stages people and cut, the retention and the cost still include them" in page

    # It cannot return, neither under another name nor as the same person in another file.
    again = tmp_path / "again"
    shutil.copyfile(sides[0], tmp_path / "holiday.mp4")
    back = make_raw(again / "raw", [tmp_path / "holiday.mp4", sides[1]], conversation_id=None, camera=None)
    result = curate(back, dataset, config, NoProgress())
    assert [(Path(item["file"]).name, item["reason"]) for item in result.rejected] == [("holiday.mp4", "erased")]
    assert Tombstones(dataset / TOMBSTONES).all == Tombstones(stones).all
    assert {row["source_id"] for row in read_rows(dataset / "manifest.parquet")} == {sides[1].stem}


def test_ingest_rejects_erased_recordings(home: Path, sides: list[Path], copy: Path, tmp_path: Path) -> None:
    stones = tmp_path / "stones.json"
    erase(copy / "dataset", "source", sides[0].name, Places(tombstones=stones))
    source = tmp_path / "source"
    source.mkdir()
    shutil.copyfile(sides[0], source / "renamed.mp4")
    shutil.copyfile(sides[1], source / "other.mp4")
    (source / "consent.yaml").write_text("licence: CC0-1.0\nconsent_ref: form\n")
    report = ingest(str(source), tmp_path / "in", IngestConfig(tombstones=str(stones)), NoProgress())
    assert [(one.file, "must not be ingested again" in one.reason) for one in report.rejected] == [
        ("renamed.mp4", True)
    ]
    assert report.sources == 1


def test_unknown_names_are_rejected_with_the_nearest(copy: Path, sides: list[Path]) -> None:
    untouched = find_digests([copy], set())
    with pytest.raises(ValueError, match="nearest names are Ada"):
        erase(copy / "dataset", "identity", "Adah", Places())
    with pytest.raises(ValueError, match=sides[0].stem):
        erase(copy / "dataset", "source", sides[0].stem + "x", Places())
    assert find_digests([copy], set()) == untouched


def test_resolve_accepts_a_digest_prefix(home: Path, sides: list[Path]) -> None:
    rows = read_rows(home / "dataset" / "manifest.parquet")
    assert list(resolve(rows, "source", file_digest(sides[1])[:10], None).sources) == [sides[1].stem]
    with pytest.raises(ValueError, match="no source"):
        resolve(rows, "source", file_digest(sides[1])[:5], None)


def test_erase_removes_clips_with_the_persons_voice(dataset: Path, tmp_path: Path) -> None:
    """In a conversation with two cameras, each side's clips contain the other's voice."""
    shutil.copytree(dataset, tmp_path / "dataset")
    rows = read_rows(dataset / "manifest.parquet")
    source = rows[0]["source_id"]
    affected = {row["clip_id"] for row in rows if source in (row["source_id"], row["listen_from"])}
    assert {row["source_id"] for row in rows if row["clip_id"] in affected} != {source}
    erase(tmp_path / "dataset", "source", source, Places())
    left = {row["clip_id"] for row in read_rows(tmp_path / "dataset" / "manifest.parquet")}
    assert left.isdisjoint(affected)


def test_erase_rejects_another_datasets_raw_folder(copy: Path, sides: list[Path], tmp_path: Path) -> None:
    other = make_raw(tmp_path / "other", sides[:1], conversation_id=None, camera=None)
    untouched = find_digests([copy, other], set())
    with pytest.raises(ValueError, match="lacks 1 of the dataset's recordings.*--raw"):
        erase(copy / "dataset", "identity", "Ada", Places(raw=other))
    assert find_digests([copy, other], set()) == untouched


def test_erase_removes_recordings_without_clips(copy: Path, tmp_path: Path) -> None:
    """Even if the person was erased before the recording was added to the folder."""
    erase(copy / "dataset", "identity", "Ada", Places(raw=copy / "raw"))
    (copy / "raw" / "media" / "late.mp4").write_bytes(b"another recording")
    late = {"source_id": "late", "file": "media/late.mp4", "sha256": "5" * 64, "person_hint": "Ada"}
    with (copy / "raw" / "sources.jsonl").open("a") as listing:
        listing.write(json.dumps(late) + "\n")
    report = erase(copy / "dataset", "identity", "Ada", Places(raw=copy / "raw"))
    assert report.removed["recordings"] == 1
    assert not (copy / "raw" / "media" / "late.mp4").exists()
    assert report.folders == (copy / "dataset", copy / "raw")


def test_preview_erase_matches_the_report(copy: Path) -> None:
    untouched = find_digests([copy], set())
    found = preview_erase(copy / "dataset", "identity", "Ada", copy / "raw")
    assert find_digests([copy], set()) == untouched
    report = erase(copy / "dataset", "identity", "Ada", Places(raw=copy / "raw"))
    assert (found.clips, found.clips_of_others, found.recordings) == (report.clips, 0, report.removed["recordings"])
    assert found.notes == report.notes == ()


def test_erase_removes_names_of_rejected_copies(copy: Path, sides: list[Path]) -> None:
    dataset, raw = copy / "dataset", copy / "raw"
    refused = [{"file": f"{name}.mp4", "reason": "same content", "same_as": side.stem} for name, side in
               zip(("ada_again", "bob_again"), sides, strict=True)]  # fmt: skip
    write_json(raw / "ingest.json", {"rejected": refused})
    report = json.loads((dataset / "curation.json").read_text())
    write_json(dataset / "curation.json", {**report, "refused_by_ingest": refused})
    erase(dataset, "identity", "ada", Places(raw=raw))
    assert json.loads((raw / "ingest.json").read_text())["rejected"] == refused[1:]
    assert json.loads((dataset / "curation.json").read_text())["refused_by_ingest"] == refused[1:]
    assert [path for path in copy.rglob("*") if path.is_file() and b"ada_again" in path.read_bytes()] == []


def test_erase_resolves_a_reused_file_name_to_the_newer_file(copy: Path) -> None:
    dataset, listing = copy / "dataset", copy / "raw" / "sources.jsonl"
    others = listing.read_text()
    for number, sha in enumerate(("5" * 64, "6" * 64), 1):
        film = {"source_id": f"film-{sha[:8]}", "file": f"media/film-{sha[:8]}.mp4", "sha256": sha, "person_hint": None}
        listing.write_text(others + json.dumps(film) + "\n")
        (copy / "raw" / film["file"]).write_bytes(b"a recording")
        for recordings in (1, 0):  # the second time, the same name refers to what was just erased
            report = erase(dataset, "source", "film.mp4", Places(raw=copy / "raw"))
            assert report.removed["recordings"] == recordings
            assert len(Tombstones(dataset / TOMBSTONES).all) == number
        assert not (copy / "raw" / film["file"]).exists()


@pytest.mark.parametrize("killed_at", [1, 2])
def test_killed_erase_resumes(copy: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If killed between the two renames, no dataset exists; running the same command again recovers it."""
    dataset, real, calls = copy / "dataset", os.replace, []

    def killed(source: Any, target: Any) -> None:
        if {Path(source), Path(target)} & {dataset}:
            calls.append(source)
            if len(calls) == killed_at:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(module.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        erase(dataset, "identity", "Ada", Places(raw=copy / "raw"))
    monkeypatch.setattr(module.os, "replace", real)
    report = erase(dataset, "identity", "Ada", Places(raw=copy / "raw"))
    assert {row["person_id"] for row in read_rows(dataset / "manifest.parquet")} == {"Bob"}
    assert report.items
    assert [path.name for path in copy.iterdir() if path.name.startswith(".")] == []
    again = erase(dataset, "identity", "Ada", Places(raw=copy / "raw"))
    assert (again.clips, again.after) == (0, report.after)


def test_erase_reports_leftover_copies(copy: Path) -> None:
    dataset = copy / "dataset"
    strip = next((dataset / "previews").iterdir())
    shutil.copyfile(strip, dataset / "notes.jpg")
    row = next(r for r in read_rows(dataset / "manifest.parquet") if r["clip_id"] == strip.stem)
    with pytest.raises(ValueError, match=r"still there.*notes\.jpg"):
        erase(dataset, "identity", row["person_id"], Places())
    assert len(list(content_digests(dataset / "curation.html"))) > 1


def test_erase_deletes_cached_results(copy: Path, sides: list[Path], tmp_path: Path) -> None:
    steps = tmp_path / "cache" / "steps"
    for verb, key, sha in (("ingest", "k1", file_digest(sides[0])), ("curate", "k2", "0" * 64)):
        (steps / verb / key / "raw").mkdir(parents=True)
        (steps / verb / key / "raw" / "sources.jsonl").write_text(json.dumps({"sha256": sha}))
    report = erase(copy / "dataset", "identity", "Ada", Places(cache=tmp_path / "cache"))
    assert report.removed["cached results"] == 1
    assert [path.name for path in steps.glob("*/*")] == ["k2"]


def test_models_trained_on_lists_model_folders(tmp_path: Path) -> None:
    for name, digest in (("base", "a" * 64), ("online", "b" * 64)):
        write_json(tmp_path / "runs" / "1" / name / "provenance.json", {"dataset_digest": digest})
    assert list(models_trained_on(("a" * 64,), tmp_path / "runs")) == [str(tmp_path / "runs" / "1" / "base")]


@pytest.mark.slow
def test_mlflow_runs_trained_on_lists_runs(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert list(mlflow_runs_trained_on(("a" * 64,), uri)) == []
    with step_run("train", TrackingConfig(uri=uri)) as run:
        run.tags({"dataset_digest": "a" * 64})
    (found,) = mlflow_runs_trained_on(("a" * 64,), uri)
    assert run.run_id in found
