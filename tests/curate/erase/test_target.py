"""Resolving the name of a person or a file to recordings, unambiguously, with notes on side effects."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from components.curate.erase.target import resolve
from components.dataset.names import source_id_of, stem_of
from lpm_model.digests import file_digest


def line(file: str, content: str, hint: str | None = None) -> dict[str, Any]:
    """A line of sources.jsonl as ingest writes it."""
    sha = content * 64
    name = source_id_of(file, sha)
    return {"source_id": name, "file": f"media/{name}{Path(file).suffix.lower()}", "sha256": sha, "person_hint": hint}


def row(of: dict[str, Any], person: str) -> dict[str, Any]:
    return {"source_id": of["source_id"], "source_sha256": of["sha256"], "file": of["file"], "person_id": person}


CLIP, LEFT, RIGHT = line("film_jwp.MP4", "a", "Barack"), line("conv/left.mp4", "b", "Ada"), line("conv/right.mp4", "c")
ROWS = [row(CLIP, "film.p0"), row(CLIP, "film.p0"), row(CLIP, "film.p1"), row(LEFT, "Ada"), row(RIGHT, "right.p0")]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw folder in which ingest rejected a copy of one recording, and a file with a name similar to another's."""
    lines = [CLIP, LEFT, RIGHT]
    (tmp_path / "sources.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    refused = [
        {"file": "conv/twin.mp4", "reason": "same content as X", "same_as": LEFT["source_id"]},
        {"file": "conv_right.mp4", "reason": "empty file", "same_as": ""},
    ]
    (tmp_path / "ingest.json").write_text(json.dumps({"rejected": refused}))
    return tmp_path


@pytest.mark.parametrize("name", ["film_jwp.mp4", "film_jwp.MP4", "film_jwp"])
def test_original_file_name_resolves(raw: Path, name: str) -> None:
    target = resolve(ROWS, "source", name, raw)
    assert target.sources == {CLIP["source_id"]: "a" * 64}
    assert target.notes == [f"{name} is {CLIP['file']}"]
    assert resolve(ROWS, "source", name, None).sources == target.sources
    for stored in (CLIP["source_id"], CLIP["file"], Path(CLIP["file"]).name):
        assert (resolve(ROWS, "source", stored, raw).sources, resolve(ROWS, "source", stored, raw).notes) == (
            target.sources,
            [],
        )


def test_file_name_includes_its_folder(raw: Path) -> None:
    assert list(resolve(ROWS, "source", "conv/left.mp4", raw).sources) == [LEFT["source_id"]]
    for name in ("left.mp4", "conv/left.mov", "left"):
        with pytest.raises(ValueError, match=f"no source .*{LEFT['source_id']}"):
            resolve(ROWS, "source", name, raw)


def test_ambiguous_name_is_rejected(raw: Path) -> None:
    later = line("film_jwp.mp4", "d")
    rows = [*ROWS, row(later, "later.p0")]
    with pytest.raises(ValueError, match=f"is ambiguous: give {CLIP['source_id']} or {later['source_id']}"):
        resolve(rows, "source", "film_jwp.mp4", raw)
    assert list(resolve(rows, "source", later["source_id"], raw).sources) == [later["source_id"]]


def test_rejected_file_is_reported_with_its_reason(raw: Path) -> None:
    """Even if another file got the source id that this one would have got."""
    for name in ("conv/twin.mp4", "twin.mp4"):
        with pytest.raises(ValueError, match=rf"rejected conv/twin.mp4 \(same.*\): give {LEFT['source_id']}"):
            resolve(ROWS, "source", name, raw)
    with pytest.raises(ValueError, match=f"empty file.*{RIGHT['source_id']} came from another file"):
        resolve(ROWS, "source", "conv_right.mp4", raw)
    assert list(resolve(ROWS, "source", "conv/right.mp4", raw).sources) == [RIGHT["source_id"]]
    assert "conv/twin.mp4" in resolve(ROWS, "identity", "Ada", raw).files


def test_path_of_a_file_with_the_same_bytes_resolves(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "any name.bin"
    copy.write_bytes(os.urandom(100))
    held = {**LEFT, "sha256": file_digest(copy)}
    monkeypatch.chdir(tmp_path)
    for name in (str(copy), "any name.bin"):
        assert list(resolve([row(held, "Ada")], "source", name, None).sources) == [LEFT["source_id"]]
    with pytest.raises(ValueError, match="no source"):
        resolve(ROWS, "source", str(copy), raw)


def test_person_hint_erases_the_whole_recording_and_notes_other_people(raw: Path) -> None:
    for name in ("Barack", " BARACK"):
        target = resolve(ROWS, "identity", name, raw)
        assert list(target.sources) == [CLIP["source_id"]]
        assert target.notes == [
            f"{Path(CLIP['file']).name} has the person_hint Barack and is erased as a whole, including "
            "3 clips of film.p0, film.p1"
        ]
    with pytest.raises(ValueError, match="person_hints cannot be searched without the raw folder"):
        resolve(ROWS, "identity", "Barack", None)
    (note,) = resolve(ROWS, "identity", "film.p0", raw).notes
    assert note.endswith("shows them and is erased as a whole, including 1 clip of film.p1")
    assert resolve(ROWS, "identity", "ada", raw).notes == []


def test_source_ids_are_safe_and_distinguish_bytes() -> None:
    assert source_id_of("day one/Interview (1).v2.MP4", "0123456789") == "day_one_Interview_1_v2-01234567"
    assert stem_of("../\u00e4.mp4") == "video"
    assert len(stem_of("x" * 200 + ".mp4")) == 60
