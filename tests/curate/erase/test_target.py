"""What a word for a person or a file means: only recordings that it surely means, and what else goes with them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from components.curate.erase.target import find
from components.dataset.names import source_id_of, stem_of
from lpm_model.digests import file_digest


def line(file: str, content: str, hint: str | None = None) -> dict[str, Any]:
    """A line of sources.jsonl as ingest writes it."""
    sha = content * 64
    name = source_id_of(file, sha)
    return {"source_id": name, "file": f"media/{name}{Path(file).suffix.lower()}", "sha256": sha, "person_hint": hint}


def row(of: dict[str, Any], person: str) -> dict[str, Any]:
    return {"source_id": of["source_id"], "source_sha256": of["sha256"], "file": of["file"], "person_id": person}


FILM, LEFT, RIGHT = line("film_jwp.MP4", "a", "Barack"), line("conv/left.mp4", "b", "Ada"), line("conv/right.mp4", "c")
ROWS = [row(FILM, "film.p0"), row(FILM, "film.p0"), row(FILM, "film.p1"), row(LEFT, "Ada"), row(RIGHT, "right.p0")]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw folder in which ingest refused a copy of one recording, and a file of a name much like another's."""
    lines = [FILM, LEFT, RIGHT]
    (tmp_path / "sources.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    refused = [
        {"file": "conv/twin.mp4", "reason": "same content as X", "same_as": LEFT["source_id"]},
        {"file": "conv_right.mp4", "reason": "empty file", "same_as": ""},
    ]
    (tmp_path / "ingest.json").write_text(json.dumps({"rejected": refused}))
    return tmp_path


@pytest.mark.parametrize("name", ["film_jwp.mp4", "film_jwp.MP4", "film_jwp"])
def test_a_files_own_name_means_it(raw: Path, name: str) -> None:
    target = find(ROWS, "source", name, raw)
    assert target.sources == {FILM["source_id"]: "a" * 64}
    assert target.notes == [f"{name} is {FILM['file']}"]
    assert find(ROWS, "source", name, None).sources == target.sources
    for stored in (FILM["source_id"], FILM["file"], Path(FILM["file"]).name):
        assert (find(ROWS, "source", stored, raw).sources, find(ROWS, "source", stored, raw).notes) == (
            target.sources,
            [],
        )


def test_a_file_in_a_folder_is_meant_with_its_folder(raw: Path) -> None:
    assert list(find(ROWS, "source", "conv/left.mp4", raw).sources) == [LEFT["source_id"]]
    for name in ("left.mp4", "conv/left.mov", "left"):
        with pytest.raises(ValueError, match=f"no source .*{LEFT['source_id']}"):
            find(ROWS, "source", name, raw)


def test_a_name_of_several_means_none_of_them(raw: Path) -> None:
    later = line("film_jwp.mp4", "d")
    rows = [*ROWS, row(later, "later.p0")]
    with pytest.raises(ValueError, match=f"may be {FILM['source_id']} or {later['source_id']}: give one"):
        find(rows, "source", "film_jwp.mp4", raw)
    assert list(find(rows, "source", later["source_id"], raw).sources) == [later["source_id"]]


def test_a_refused_file_is_said_to_be_one(raw: Path) -> None:
    """Also where another file's name became what this one's would have become."""
    for name in ("conv/twin.mp4", "twin.mp4"):
        with pytest.raises(ValueError, match=rf"left conv/twin.mp4 out \(same.*\): give {LEFT['source_id']}"):
            find(ROWS, "source", name, raw)
    with pytest.raises(ValueError, match=f"empty file.*{RIGHT['source_id']} came of another file"):
        find(ROWS, "source", "conv_right.mp4", raw)
    assert list(find(ROWS, "source", "conv/right.mp4", raw).sources) == [RIGHT["source_id"]]
    assert "conv/twin.mp4" in find(ROWS, "identity", "Ada", raw).files


def test_a_file_with_its_bytes_means_it(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "any name.bin"
    copy.write_bytes(os.urandom(100))
    held = {**LEFT, "sha256": file_digest(copy)}
    monkeypatch.chdir(tmp_path)
    for name in (str(copy), "any name.bin"):
        assert list(find([row(held, "Ada")], "source", name, None).sources) == [LEFT["source_id"]]
    with pytest.raises(ValueError, match="no source"):
        find(ROWS, "source", str(copy), raw)


def test_a_hint_takes_the_whole_recording_and_says_whose_clips_go_with_it(raw: Path) -> None:
    for name in ("Barack", " BARACK"):
        target = find(ROWS, "identity", name, raw)
        assert list(target.sources) == [FILM["source_id"]]
        assert target.notes == [
            f"all of {Path(FILM['file']).name} goes, since its person_hint is Barack: "
            "with it 3 clips of film.p0, film.p1"
        ]
    with pytest.raises(ValueError, match="person_hints are not looked at without the raw folder"):
        find(ROWS, "identity", "Barack", None)
    (note,) = find(ROWS, "identity", "film.p0", raw).notes
    assert note.endswith("goes, since it shows them: with it 1 clip of film.p1")
    assert find(ROWS, "identity", "ada", raw).notes == []


def test_names_of_recordings_are_safe_and_tell_bytes_apart() -> None:
    assert source_id_of("day one/Interview (1).v2.MP4", "0123456789") == "day_one_Interview_1_v2-01234567"
    assert stem_of("../\u00e4.mp4") == "video"
    assert len(stem_of("x" * 200 + ".mp4")) == 60
