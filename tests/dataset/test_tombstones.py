"""Tombstones match erased recordings by bytes and by every spelling of a name, and report which."""

import hashlib
from pathlib import Path

import pytest

from components.dataset.tombstones import Tombstone, Tombstones, add, name_digest
from components.ingest.config import IngestConfig
from components.ingest.step import ingest
from lpm_model.digests import file_digest
from lpm_model.progress import NoProgress
from tests.ingest.test_ingest import CONSENT, video


def stone(*names: str, sources: tuple[str, ...] = ()) -> Tombstone:
    """An erasure of some names (by their digests) and recordings."""
    return Tombstone(request=name_digest("identity somebody"), sources=sources, names=names, items=(), datasets=())


@pytest.mark.parametrize(
    "spelled", ["Barack Ob\u00e4ma", "BARACK OB\u00c4MA", "  barack  oba\u0308ma\n", "Ｂarack Obäma"]
)
def test_tombstone_covers_every_spelling_of_a_name(spelled: str) -> None:
    found = stone(name_digest("Barack Obäma"))
    assert found.covers("", spelled) == "name"
    assert found.covers("", "Barack", None, "") is None
    assert found.matches_request("identity  Somebody")
    assert not found.matches_request("source somebody")


def test_tombstone_of_an_exact_spelling_covers_that_spelling() -> None:
    digest = hashlib.sha256(b"name\0Ada").hexdigest()
    assert digest != name_digest("Ada")
    assert stone(digest).covers("", "Ada") == "name"


def test_ingest_reports_what_matched_a_tombstone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    again, other = video(source / "renamed.mp4", 60), video(source / "other.mp4", 90)
    for file, hint in ((again, "Somebody Else"), (other, "ADA "), (video(source / "free.mp4", 120), "Adam")):
        file.with_name(file.name + ".yaml").write_text(f"{CONSENT}person_hint: {hint!r}\n")
    add(tmp_path / "stones.json", [stone(name_digest("Ada"), sources=(file_digest(again),))])
    report = ingest(str(source), tmp_path / "raw", IngestConfig(tombstones=str(tmp_path / "stones.json")), NoProgress())
    known = {one.file: one.reason for one in report.rejected}
    assert known.keys() == {"renamed.mp4", "other.mp4"}
    assert "matched by its bytes: it must not be ingested again" in known["renamed.mp4"]
    assert "matched by its person_hint: it must not be ingested again" in known["other.mp4"]
    stones = Tombstones(tmp_path / "stones.json")
    assert (stones.find_match(file_digest(again), "Ada"), stones.find_match("0" * 64, "ada")) == ("bytes", "name")
