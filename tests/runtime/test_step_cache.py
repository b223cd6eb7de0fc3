"""A step runs again when its inputs, its config or its code change, and only then."""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.runtime import runner
from components.runtime.cache_keys import code_digest, input_digest
from components.runtime.lineage import chain_of, read_links
from components.runtime.runner import StepRecord, run_step
from components.runtime.steps import Step
from lpm_model.digests import RUN_MANIFEST
from lpm_model.files import locked, read_json
from lpm_model.progress import NoProgress
from tests.runtime.conftest import Calls, CountConfig

DEFAULT = CountConfig()


@dataclasses.dataclass
class Unsettled:
    """Report of a step that may give more another time."""

    to_try_again: int


@pytest.fixture
def go(step: Step, raw: Path, tmp_path: Path):
    def run(config: CountConfig = DEFAULT, name: str = "out", cached: bool = True) -> StepRecord:
        cache = tmp_path / "cache" if cached else None
        return run_step(step, {"raw": raw}, tmp_path / name, config, NoProgress(), cache=cache)

    return run


def test_same_call_is_reused(go, calls: Calls, tmp_path: Path) -> None:
    first, second = go(), go(name="again")
    assert (first.cached, second.cached, calls.count) == (False, True, 1)
    assert second.output == first.output
    assert second.report == {"total": 14}
    assert (tmp_path / "again" / "total.txt").read_text() == "14"
    assert second.worked_seconds == first.worked_seconds


def test_config_input_and_code_each_count(go, calls: Calls, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go()
    assert not go(CountConfig(factor=3)).cached
    (raw / "c.txt").write_text("5")
    assert not go().cached
    monkeypatch.setattr(runner, "code_digest", lambda module: "another")
    assert not go().cached
    assert go().cached
    assert calls.count == 4


def test_damaged_result_is_not_reused(go, calls: Calls, tmp_path: Path) -> None:
    go()
    (kept,) = (tmp_path / "cache" / "steps" / "count").glob("*/dataset/total.txt")
    kept.write_text("15")
    assert not go().cached
    assert (tmp_path / "out" / "total.txt").read_text() == "14"
    assert calls.count == 2


def test_deleting_the_run_leaves_the_cache(go, tmp_path: Path) -> None:
    go()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    assert go().cached
    assert (tmp_path / "out" / "total.txt").read_text() == "14"


def test_without_cache_it_runs_each_time(go, calls: Calls) -> None:
    assert not go(cached=False).cached
    assert not go(cached=False).cached
    assert calls.count == 2


def test_only_a_few_results_are_kept(go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "KEPT_ENTRIES", 2)
    for factor in range(2, 6):
        go(CountConfig(factor=factor))
    assert len(list((tmp_path / "cache" / "steps" / "count").glob("*/step.json"))) == 2
    assert go(CountConfig(factor=5)).cached


def test_a_result_that_may_get_better_is_not_reused(go, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step says that it left something out which another try may take in; then that it did not."""
    module = sys.modules["components.count.step"]
    plain, left = module.count, [1, 0]

    def count(**given: Any) -> Any:
        plain(**given)
        return Unsettled(to_try_again=left.pop(0))

    monkeypatch.setattr(module, "count", count)
    assert [go().cached for _ in range(3)] == [False, False, True]


def test_unfinished_results_go_when_nobody_comes_back(go, tmp_path: Path) -> None:
    steps = tmp_path / "cache" / "steps" / "count"
    for name, age_s in (("left", 8 * 24 * 3600), ("busy", 8 * 24 * 3600), ("fresh", 3600)):
        (steps / name / ".dataset.partial").mkdir(parents=True)
        os.utime(steps / name, (time.time() - age_s,) * 2)
    with locked(steps / "busy"):
        go()
    assert {path.name for path in steps.iterdir() if path.is_dir()} >= {"busy", "fresh"}
    assert not (steps / "left").exists()


def test_what_other_calls_can_use_lies_in_the_cache(
    step: Step, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    module = sys.modules["components.count.step"]
    plain = module.count

    def count(*, looks: Path | None = None, **rest: Any) -> Any:
        given.append(looks)
        return plain(**rest)

    monkeypatch.setattr(module, "count", count)
    shelved = dataclasses.replace(step, kept="looks")
    for cache in (tmp_path / "cache", None):
        run_step(shelved, {"raw": raw}, tmp_path / "out", DEFAULT, NoProgress(), cache=cache)
    assert given == [tmp_path / "cache" / "looks", None]


def test_missing_input_is_named(step: Step, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count needs raw: .*nothing does not exist"):
        run_step(step, {"raw": tmp_path / "nothing"}, tmp_path / "out", CountConfig(), NoProgress())


def test_lineage_grows_and_names_digests(go, raw: Path, tmp_path: Path) -> None:
    record = go()
    (link,) = read_links(tmp_path / "out")
    assert link.step == "count"
    assert link.inputs == {"raw": input_digest(raw)}
    assert link.output == record.output == input_digest(tmp_path / "out")
    assert chain_of(str(tmp_path / "out")) == [link]
    assert read_json(tmp_path / "out" / RUN_MANIFEST)["steps"][0]["commit"]
    with pytest.raises(ValueError, match=r"has no run\.json"):
        chain_of(str(raw))


def test_time_and_memory_are_measured(go) -> None:
    record = go()
    assert record.peak_rss_mb > 10
    assert 0 < record.seconds < 60


def _project(root: Path, body: str) -> str:
    package = root / "components" / "verb"
    package.mkdir(parents=True, exist_ok=True)
    (root / "components" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "step.py").write_text("from components.verb import helper\n")
    (package / "helper.py").write_text(body)
    (package / "unused.py").write_text("X = 1\n")
    code_digest.cache_clear()
    return code_digest("components.verb.step", root)


def test_code_digest_follows_imports_and_ignores_comments(tmp_path: Path) -> None:
    first = _project(tmp_path, "def f():\n    return 1\n")
    assert _project(tmp_path, '# why\ndef f():\n    """Text."""\n\n    return 1\n') == first
    assert _project(tmp_path, "def f():\n    return 2\n") != first
    (tmp_path / "components" / "verb" / "template.html").write_text("<p>")
    assert _project(tmp_path, "def f():\n    return 1\n") != first


def test_source_folders_are_seen_to_change(tmp_path: Path) -> None:
    assert input_digest("performer") == input_digest("performer")
    assert input_digest("s3://bucket/prefix") == ""
    (tmp_path / "a.mp4").write_bytes(b"1")
    first = input_digest(str(tmp_path))
    (tmp_path / "b.mp4").write_bytes(b"2")
    assert input_digest(str(tmp_path)) != first
