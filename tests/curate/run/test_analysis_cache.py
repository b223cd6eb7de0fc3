"""First passes kept for later runs: what they are reused for, to which bytes, how many stay, and that they can go."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from components.curate.config import CurationConfig
from components.curate.erase.erase import Places, forget
from components.curate.run import passes
from components.curate.run.analysis_cache import KeptLooks, of_forgotten
from components.curate.step import curate
from components.dataset.sources import read_sources
from components.dataset.tombstones import TOMBSTONES, Tombstones
from lpm_model.digests import folder_digest
from lpm_model.files import read_json
from lpm_model.progress import NoProgress
from tests.curate.corpus import make_raw, write_video

T = TypeVar("T")


@pytest.fixture(scope="module")
def raw(sides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people who have nothing to do with each other, and a wall."""
    import numpy as np

    home = tmp_path_factory.mktemp("kept")
    wall = write_video(home / "wall.mp4", [np.full((96, 96, 3), 40 + n, np.uint8) for n in range(36)], tone_from_s=0.0)
    raw = make_raw(home / "raw", [*sides, wall], conversation_id=None, camera=None)
    lines = [json.loads(line) for line in (raw / "sources.jsonl").read_text().splitlines()]
    lines[0]["person_hint"], lines[1]["person_hint"] = "Ada", "Bob"
    (raw / "sources.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return raw


@pytest.fixture(scope="module")
def quick(config: CurationConfig) -> CurationConfig:
    """Settings that pair nobody."""
    return dataclasses.replace(config, states=dataclasses.replace(config.states, match_cameras_max=0), mesh_stride=6)


@pytest.fixture(scope="module")
def looks(raw: Path, quick: CurationConfig) -> Path:
    """What a first run keeps."""
    curate(raw, raw.parent / "first", quick, NoProgress(), raw.parent / "cache" / "looks")
    return raw.parent / "cache" / "looks"


class Bars(NoProgress):
    """Where bars begin and end."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, int | None]] = {}

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        self.seen[description] = (done, total)
        yield from items


def other(config: CurationConfig) -> CurationConfig:
    """The same with other settings of the second pass."""
    return dataclasses.replace(config, thresholds={"max_yaw_deg": 5.0, "min_confidence": 0.7}, max_clip_s=3.0)


def settled(dataset: Path) -> str:
    """Digest of all of a dataset but the time that it took."""
    (dataset / "timing.json").unlink()
    page = dataset / "curation.html"
    page.write_text(re.sub(r'<table id="cost">.*?</table>', "", page.read_text(), count=1, flags=re.DOTALL))
    return folder_digest(dataset)


def test_other_thresholds_need_no_second_look(
    raw: Path, looks: Path, quick: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(raw, tmp_path / "scratch", other(quick), NoProgress())
    assert read_json(tmp_path / "scratch" / "timing.json")["look"]["reused"] == 0
    monkeypatch.setattr(passes, "analyse", None)
    bars = Bars()
    curate(raw, tmp_path / "again", other(quick), bars, looks)
    assert (bars.seen["looking at sources"], bars.seen["making clips"]) == ((3, 3), (0, 2))
    assert list(bars.seen)[-1] == "checks and page"
    assert read_json(tmp_path / "again" / "timing.json")["look"]["reused"] == 3
    assert settled(tmp_path / "again") == settled(tmp_path / "scratch")


def test_a_kept_first_pass_comes_without_the_pictures_of_another(
    raw: Path, looks: Path, quick: CurationConfig, tmp_path: Path
) -> None:
    """A run was killed after it had looked at a file that was then replaced by one whose first pass is kept."""
    source = read_sources(raw)[0]
    job = passes.Job(raw=raw, parts=tmp_path, source=source, config=quick, key=passes.look_key(source, quick))
    job.folder.mkdir()
    for name in ("cutouts.yuv", "cutouts.npz"):
        (job.folder / name).write_bytes(b"other people")
    KeptLooks(looks, 1e9).give(job)
    assert {path.name for path in job.folder.iterdir()} == {"look.json", "look.npz"}


@pytest.mark.parametrize("change", ["setting", "file", "code"])
def test_what_the_first_pass_depends_on_is_looked_at_again(
    raw: Path, looks: Path, quick: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    looked: list[str] = []
    real = passes.analyse

    def analyse(raw: Path, source: Any, config: CurationConfig, cutouts: Any) -> Any:
        looked.append(source.source_id)
        return real(raw, source, config, cutouts)

    monkeypatch.setattr(passes, "analyse", analyse)
    names = {path.stem for path in (raw / "media").iterdir()}
    if change == "setting":
        quick = dataclasses.replace(quick, mesh_stride=5)
    elif change == "code":
        monkeypatch.setattr(passes, "code_digest", lambda module: "another")
    else:  # its bytes are no longer those that ingest listed
        raw, given = tmp_path / "raw", raw
        make_raw(raw, sorted((given / "media").iterdir()))
        (raw / "sources.jsonl").write_text((given / "sources.jsonl").read_text())
        with (raw / "media" / "wall.mp4").open("ab") as file:
            file.write(b"\0")
        names = {"wall"}
    curate(raw, tmp_path / "dataset", quick, NoProgress(), looks)
    assert set(looked) == names


def test_those_not_asked_for_the_longest_go_first(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "look.npz").write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    KeptLooks(tmp_path, 250).trim()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_may_not_hold_another_time_is_not_kept(raw: Path, quick: CurationConfig, tmp_path: Path) -> None:
    from components.dataset.sources import read_sources

    job = passes.Job(raw=raw, parts=tmp_path / "parts", source=read_sources(raw)[0], config=quick, key="k")
    shelf = KeptLooks(tmp_path / "looks", 1e9)
    for reason, there in (("too_slow", False), ("worker_died", False), ("no_face", True)):
        shelf.keep(job, {"ok": False, "file": "", "reason": reason, "detail": ""})
        assert (tmp_path / "looks" / "k").exists() == there


def test_forgetting_reaches_kept_first_passes(
    raw: Path, quick: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was made under other settings; and a copy of it that lies elsewhere is found by the proof."""
    looks = tmp_path / "cache" / "looks"
    curate(raw, tmp_path / "dataset", quick, NoProgress(), looks)
    curate(raw, tmp_path / "dataset", dataclasses.replace(quick, mesh_stride=5), NoProgress(), looks)
    assert len(list(looks.iterdir())) == 6
    before = {path: path.read_bytes() for path in looks.glob("*/look.npz")}
    places = Places(cache=tmp_path / "cache", tombstones=tmp_path / TOMBSTONES)
    unfinished = tmp_path / ".dataset.partial" / "parts" / sorted((raw / "media").iterdir())[0].stem
    unfinished.mkdir(parents=True)
    report = forget(tmp_path / "dataset", "identity", "Ada", places)
    assert report.removed["kept first passes"] == 2
    assert not unfinished.exists()
    assert looks in report.folders
    assert len(list(looks.iterdir())) == 4
    stones = Tombstones(tmp_path / TOMBSTONES)
    assert of_forgotten(looks, stones.all) == []
    assert all(b"Ada" not in path.read_bytes() for path in looks.rglob("*") if path.is_file())

    gone = next(data for path, data in before.items() if not path.exists())
    (tmp_path / "dataset" / "notes.bin").write_bytes(gone)
    with pytest.raises(ValueError, match=r"still there.*notes\.bin"):
        forget(tmp_path / "dataset", "identity", "Ada", places)


def test_a_run_lets_go_of_what_was_forgotten_elsewhere(raw: Path, quick: CurationConfig, tmp_path: Path) -> None:
    looks, stones = tmp_path / "looks", tmp_path / TOMBSTONES
    curate(raw, tmp_path / "dataset", quick, NoProgress(), looks)
    forget(tmp_path / "dataset", "identity", "Ada", Places(tombstones=stones))
    assert len(of_forgotten(looks, Tombstones(stones).all)) == 1
    curate(raw, tmp_path / "again", dataclasses.replace(quick, tombstones=str(stones)), NoProgress(), looks)
    assert of_forgotten(looks, Tombstones(stones).all) == []
