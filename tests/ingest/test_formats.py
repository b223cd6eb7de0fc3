"""File types: supported containers are accepted by content; other extensions are rejected by name or ignored."""

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from components.curate.config import SourceLimits
from components.curate.video.probe import probe
from components.ingest import s3
from components.ingest.config import IngestConfig
from components.ingest.formats import DEMUXERS, rejection_reason
from components.ingest.sidecar import read_sidecar
from components.ingest.step import ingest
from lpm_model.progress import NoProgress
from tests.ingest.test_ingest import CONSENT, video

MUXERS = {"mov": "mov", "matroska": "matroska", "avi": "avi", "mpeg": "vob", "mpegts": "mpegts", "flv": "flv"}


def clip(path: Path, shade: int) -> Path:
    """Write 24 frames into the container that the extension names."""
    with av.open(str(path), "w", format=MUXERS[DEMUXERS[path.suffix]]) as out:
        stream = out.add_stream("flv" if path.suffix == ".flv" else "mpeg2video", rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade + number, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source folder with consent for everything in it."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "consent.yaml").write_text(CONSENT)
    return folder


def test_every_container_is_read_by_ingest_and_curate(source: Path, tmp_path: Path) -> None:
    for number, extension in enumerate(DEMUXERS):
        made = clip(source / f"odd{number}{extension}", 20 + 10 * number)
        assert probe(made, SourceLimits(min_duration_s=0.1)).width_px == 64
    report = ingest(str(source), tmp_path / "raw", IngestConfig(), NoProgress())
    assert report.rejected == ()
    assert (report.sources, report.ignored) == (len(DEMUXERS), 0)


def test_content_must_match_the_extension(source: Path, tmp_path: Path) -> None:
    """A playlist, text or another container is rejected under every video extension."""
    video(source / "good.mp4")
    contents = {
        "playlist": b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n",
        "concat": f"ffconcat version 1.0\nfile {source / 'good.mp4'}\n".encode(),
        "code": b"export const answer: number = 42;\n" * 200,
        "other": clip(tmp_path / "x.avi", 50).read_bytes(),
    }
    names = [f"{kind}{extension}" for kind in contents for extension in (".ts", ".mpg", ".flv", ".3gp")]
    for name in names:
        (source / name).write_bytes(contents[name.partition(".")[0]])
    report = ingest(str(source), tmp_path / "raw", IngestConfig(), NoProgress())
    assert [one.file for one in report.rejected] == sorted(names)
    assert report.sources == 1


def test_other_media_is_rejected_by_name_and_other_files_are_ignored(source: Path, tmp_path: Path) -> None:
    good = video(source / "good.mp4")
    for name in ("day/odd.WMV", "voice.wav", "old.avi", "notes.txt", "day/face.jpg", "list.json", ".hidden.wmv"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(good, source / name)
    report = ingest(str(source), tmp_path / "raw", IngestConfig(extensions=(".mp4",)), NoProgress())
    reasons = {one.file: one.reason for one in report.rejected}
    assert reasons.keys() == {"day/odd.WMV", "voice.wav", "old.avi"}
    assert ".wmv files are not supported: convert" in reasons["day/odd.WMV"]
    assert "audio without video" in reasons["voice.wav"]
    assert "add the extension to ingest.extensions" in reasons["old.avi"]
    assert (report.sources, report.ignored) == (1, 3)


def test_s3_objects_are_rejected_for_the_same_reasons() -> None:
    class Entry:
        is_dir, size = False, 10

        def __init__(self, name: str) -> None:
            self.object_name = name

    entries: list[Any] = [Entry(f"raw/{name}") for name in ("a.mp4", "a.mp4.yaml", "b.wmv", "c.wav", "d.txt")]
    wanted, rejected, ignored = s3.select_objects(entries, "raw", IngestConfig())
    assert [str(path) for _, path in wanted] == ["a.mp4", "a.mp4.yaml"]
    assert rejected == [(f"raw/{name}", rejection_reason(name, DEMUXERS)) for name in ("b.wmv", "c.wav")]
    assert ignored == 1


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"licence: CC0\ncamera: [a, b\n", "line 3, column 1: "),
        (b"licence: CC0\n  consent_ref: x\n", "line 2, column 14: mapping values"),
        (b"licence: CC0\nconsent_ref: a\x07b\n", "line 2, column 15: a control character"),
        ("licence: CC0\nconsent_ref: caf\u00e9\n".encode("latin-1"), "not UTF-8 text: see line 2"),
    ],
)
def test_broken_sidecar_error_names_file_line_and_column(source: Path, text: bytes, place: str) -> None:
    (source / "day").mkdir()
    (source / "day" / "a.mp4.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=rf"sidecar day/a\.mp4\.yaml is .*{place}"):
        read_sidecar(source / "day" / "a.mp4", source)
