"""Validation reads shards and digests: datasets that were changed after curation fail."""

import io
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from components.dataset.manifest import read_rows
from components.dataset.shards import load_array, read_shard, write_shards
from components.dataset.validate import EQUAL_COLUMNS, clip_facts, file_facts, validate


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def rewritten(folder: Path, change: dict[str, object]) -> None:
    """Rewrite the first shard with other members in its first clip."""
    path = sorted((folder / "shards").glob("*.tar"))[0]
    clips = []
    for clip, parts in read_shard(path):
        arrays = {name.removesuffix(".npy"): load_array(data) for name, data in parts.items() if name != "json"}
        clips.append((clip, {**arrays, "json": json.loads(parts["json"])}))
    clips[0] = (clips[0][0], {**clips[0][1], **change})
    write_shards(folder / "shards", clips, 10_000)


def broken_columns(folder: Path) -> set[str]:
    """Columns of the clips' facts that differ from what they should be."""
    broken = set()
    for fact in clip_facts(folder, read_rows(folder / "manifest.parquet")):
        broken |= {column for column, expected in EQUAL_COLUMNS if fact[column] != fact[expected]}
        broken |= {name for name in ("nonfinite_values", "metadata_differences") if fact[name]}
    return broken


def test_valid_dataset_passes(dataset: Path) -> None:
    assert broken_columns(dataset) == set()
    assert all(fact["sha256"] == fact["recorded_sha256"] for fact in file_facts(dataset))


def test_great_expectations_logs_nothing(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip_frames = json.loads((copy / "dataset.json").read_text())["clip_frames"]
    with caplog.at_level(logging.INFO):
        validate(read_rows(copy / "manifest.parquet"), copy, tuple(clip_frames))
    assert not [record for record in caplog.records if record.name.startswith("great_expectations")]


def test_broken_shard_members_are_named(copy: Path) -> None:
    clip, parts = next(read_shard(sorted((copy / "shards").glob("*.tar"))[0]))
    latents = load_array(parts["latents.npy"]).copy()
    latents[0, 0, 0, 0] = np.nan
    for change, column in (
        ({"latents": latents}, "nonfinite_values"),
        ({"latents": load_array(parts["latents.npy"])[:, 1:]}, "latent_frames"),
        ({"speak": np.zeros(7, np.int16)}, "speak_samples"),
        ({"references": np.zeros((9, 1, 1, 1), np.float16)}, "references"),
        ({"json": {**json.loads(parts["json"]), "caption": "x"}}, "metadata_differences"),
    ):
        held = {name.removesuffix(".npy"): load_array(data) for name, data in parts.items() if name != "json"}
        rewritten(copy, {**held, "json": json.loads(parts["json"]), **change})
        assert column in broken_columns(copy), clip
    rows = read_rows(copy / "manifest.parquet")
    described = json.loads((copy / "dataset.json").read_text())
    with pytest.raises(ValueError, match=r"shards: .*column metadata_differences; files: .*column_A sha256"):
        validate(rows, copy, tuple(described["clip_frames"]))
    assert (copy / "validation" / "index.html").exists()


def test_missing_clips_and_files_are_named(copy: Path) -> None:
    path = sorted((copy / "shards").glob("*.tar"))[0]
    path.unlink()
    assert "shard" in broken_columns(copy)
    assert any(fact["recorded_sha256"] and not fact["sha256"] for fact in file_facts(copy))
    with (copy / "shards" / "train-000009.tar").open("wb") as handle:
        handle.write(io.BytesIO(bytes(10240)).getvalue())
    assert any(not fact["recorded_sha256"] for fact in file_facts(copy))
    rows = read_rows(copy / "manifest.parquet")
    with pytest.raises(ValueError, match=r"shards: .*not be null, column shard; files: .*null, column recorded_sha256"):
        validate(rows, copy, tuple(json.loads((copy / "dataset.json").read_text())["clip_frames"]))


def test_data_docs_open_from_disk_without_scripts_or_network(dataset: Path) -> None:
    pages = list((dataset / "validation").rglob("*.html"))
    index = (dataset / "validation" / "index.html").read_text()
    for suite in ("manifest", "shards", "files"):
        (page,) = (dataset / "validation" / "validations" / suite).rglob("*.html")
        assert f'href="{page.relative_to(dataset / "validation").as_posix()}"' in index
        assert "Success" in page.read_text() or "success" in page.read_text()
    fetched = re.compile(r"<script|<link[^>]*https?://|src=.https?://")
    assert [page.name for page in pages if fetched.search(page.read_text())] == []
