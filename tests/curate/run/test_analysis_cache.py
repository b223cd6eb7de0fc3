"""The analysis cache: what invalidates an entry, equal datasets with and without it, eviction and erasure."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from components.curate.config import CurationConfig
from components.curate.erase.erase import Places, erase
from components.curate.run import analyse, analysis_pass
from components.curate.run.analysis_cache import AnalysisCache, erased_entries
from components.curate.run.job import Job
from components.curate.step import curate
from components.dataset.sources import read_sources
from components.dataset.tombstones import TOMBSTONES, Tombstones
from components.runtime.code_closure import code_closure
from lpm_model.digests import folder_digest
from lpm_model.files import read_json
from lpm_model.progress import NoProgress
from tests.curate.corpus import make_raw, write_video
from tests.curate.spies import must_not_be_called

T = TypeVar("T")


@pytest.fixture(scope="module")
def raw(sides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people in separate conversations, and a video of a wall."""
    import numpy as np

    home = tmp_path_factory.mktemp("analysis-cache")
    wall = write_video(home / "wall.mp4", [np.full((96, 96, 3), 40 + n, np.uint8) for n in range(36)], tone_from_s=0.0)
    raw = make_raw(home / "raw", [*sides, wall], conversation_id=None, camera=None)
    lines = [json.loads(line) for line in (raw / "sources.jsonl").read_text().splitlines()]
    lines[0]["person_hint"], lines[1]["person_hint"] = "Ada", "Bob"
    (raw / "sources.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return raw


@pytest.fixture(scope="module")
def quick(config: CurationConfig) -> CurationConfig:
    """Settings without pairing by audio."""
    return dataclasses.replace(config, states=dataclasses.replace(config.states, match_cameras_max=0), mesh_stride=6)


@pytest.fixture(scope="module")
def cache(raw: Path, quick: CurationConfig) -> Path:
    """The analysis cache after a first run."""
    folder = raw.parent / "cache" / "analysis"
    curate(raw, raw.parent / "first", quick, NoProgress(), folder)
    return folder


class Bars(NoProgress):
    """Records where progress bars begin and end."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, int | None]] = {}

    def track(self, items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
        self.seen[description] = (done, total)
        yield from items


def with_other_thresholds(config: CurationConfig) -> CurationConfig:
    """The same config with other settings of the clip pass."""
    return dataclasses.replace(config, thresholds={"max_yaw_deg": 5.0, "min_confidence": 0.7}, max_clip_s=3.0)


def digest_without_timing(dataset: Path) -> str:
    """Digest of a dataset folder without its timings."""
    (dataset / "timing.json").unlink()
    page = dataset / "curation.html"
    page.write_text(re.sub(r'<table id="cost">.*?</table>', "", page.read_text(), count=1, flags=re.DOTALL))
    return folder_digest(dataset)


def test_other_thresholds_reuse_all_analyses(
    raw: Path, cache: Path, quick: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_other_thresholds(quick)
    curate(raw, tmp_path / "scratch", config, NoProgress())
    assert read_json(tmp_path / "scratch" / "timing.json")["analysis"]["reused"] == 0
    monkeypatch.setattr(analyse, "analyse", must_not_be_called("analyse"))
    bars = Bars()
    curate(raw, tmp_path / "again", config, bars, cache)
    assert (bars.seen["analysing sources"], bars.seen["making clips"]) == ((3, 3), (0, 2))
    assert list(bars.seen)[-1] == "validation and page"
    assert read_json(tmp_path / "again" / "timing.json")["analysis"]["reused"] == 3
    assert digest_without_timing(tmp_path / "again") == digest_without_timing(tmp_path / "scratch")


def test_restore_discards_the_roi_cache_of_another_file(
    raw: Path, cache: Path, quick: CurationConfig, tmp_path: Path
) -> None:
    """A run was killed after it had analysed a file that was then replaced by one whose analysis is cached."""
    source = read_sources(raw)[0]
    key = analysis_pass.analysis_key(source, quick)
    job = Job(raw=raw, parts=tmp_path, source=source, config=quick, key=key)
    job.folder.mkdir()
    for name in ("roi_cache.yuv", "roi_cache.npz"):
        (job.folder / name).write_bytes(b"other people")
    AnalysisCache(cache, 1e9).restore(job)
    assert {path.name for path in job.folder.iterdir()} == {"analysis.json", "analysis.npz"}


@pytest.mark.parametrize("change", ["setting", "file", "code"])
def test_changed_dependencies_invalidate_cached_analyses(
    raw: Path, cache: Path, quick: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    analysed: list[str] = []
    real = analyse.analyse

    def spy(raw: Path, source: Any, config: CurationConfig, roi_cache: Any) -> Any:
        analysed.append(source.source_id)
        return real(raw, source, config, roi_cache)

    monkeypatch.setattr(analyse, "analyse", spy)
    names = {path.stem for path in (raw / "media").iterdir()}
    if change == "setting":
        quick = dataclasses.replace(quick, mesh_stride=5)
    elif change == "code":
        monkeypatch.setattr(analysis_pass, "analysis_code", lambda: {"another": ("code", {})})
    else:  # its bytes differ from those that ingest listed
        raw, given = tmp_path / "raw", raw
        make_raw(raw, sorted((given / "media").iterdir()))
        (raw / "sources.jsonl").write_text((given / "sources.jsonl").read_text())
        with (raw / "media" / "wall.mp4").open("ab") as file:
            file.write(b"\0")
        names = {"wall"}
    curate(raw, tmp_path / "dataset", quick, NoProgress(), cache)
    assert set(analysed) == names


def test_analysis_key_covers_exactly_the_code_of_the_analysis() -> None:
    files = {file for module in analysis_pass.analysis_code() for file in code_closure(module).files}
    covered = {"run/analyse", "run/analysis_file", "video/decode", "video/faces", "labels/speech", "scorers/text"}
    assert {f"components/curate/{name}.py" for name in covered} <= files
    assert not [file for file in files if file.startswith(("components/curate/clips/", "components/curate/report/"))]
    packages = {name for _, versions in analysis_pass.analysis_code().values() for name in versions}
    assert {"av", "numpy"} <= packages


def test_evict_deletes_the_least_recently_used(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "analysis.npz").write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    AnalysisCache(tmp_path, 250).evict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_transient_failures_are_not_cached(raw: Path, quick: CurationConfig, tmp_path: Path) -> None:
    job = Job(raw=raw, parts=tmp_path / "parts", source=read_sources(raw)[0], config=quick, key="k")
    cache = AnalysisCache(tmp_path / "analysis", 1e9)
    for reason, cached in (("too_slow", False), ("worker_died", False), ("no_face", True)):
        cache.store(job, {"ok": False, "file": "", "reason": reason, "detail": ""})
        assert (tmp_path / "analysis" / "k").exists() == cached


def test_erase_reaches_cached_analyses(raw: Path, quick: CurationConfig, tmp_path: Path) -> None:
    """Also one made under other settings; and a copy elsewhere is found by the verification."""
    cache = tmp_path / "cache" / "analysis"
    curate(raw, tmp_path / "dataset", quick, NoProgress(), cache)
    curate(raw, tmp_path / "dataset", dataclasses.replace(quick, mesh_stride=5), NoProgress(), cache)
    assert len(list(cache.iterdir())) == 6
    before = {path: path.read_bytes() for path in cache.glob("*/analysis.npz")}
    places = Places(cache=tmp_path / "cache", tombstones=tmp_path / TOMBSTONES)
    unfinished = tmp_path / ".dataset.partial" / "parts" / sorted((raw / "media").iterdir())[0].stem
    unfinished.mkdir(parents=True)
    report = erase(tmp_path / "dataset", "identity", "Ada", places)
    assert report.removed["cached analyses"] == 2
    assert not unfinished.exists()
    assert cache in report.folders
    assert len(list(cache.iterdir())) == 4
    tombstones = Tombstones(tmp_path / TOMBSTONES)
    assert erased_entries(cache, tombstones.all) == []
    assert all(b"Ada" not in path.read_bytes() for path in cache.rglob("*") if path.is_file())

    erased = next(data for path, data in before.items() if not path.exists())
    (tmp_path / "dataset" / "notes.bin").write_bytes(erased)
    with pytest.raises(ValueError, match=r"still there.*notes\.bin"):
        erase(tmp_path / "dataset", "identity", "Ada", places)


def test_run_deletes_cached_analyses_that_were_erased_elsewhere(
    raw: Path, quick: CurationConfig, tmp_path: Path
) -> None:
    cache, file = tmp_path / "analysis", tmp_path / TOMBSTONES
    curate(raw, tmp_path / "dataset", quick, NoProgress(), cache)
    erase(tmp_path / "dataset", "identity", "Ada", Places(tombstones=file))
    assert len(erased_entries(cache, Tombstones(file).all)) == 1
    curate(raw, tmp_path / "again", dataclasses.replace(quick, tombstones=str(file)), NoProgress(), cache)
    assert erased_entries(cache, Tombstones(file).all) == []
