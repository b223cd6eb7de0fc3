"""A step runs again when its inputs, its config or its code change, and only then."""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.runtime import runner
from components.runtime.cache_keys import input_digest
from components.runtime.lineage import read_links, resolve_lineage
from components.runtime.runner import StepRecord, run_step
from components.runtime.steps import Step
from lpm_model.digests import RUN_MANIFEST
from lpm_model.files import locked, read_json
from lpm_model.progress import NoProgress
from tests.runtime.conftest import Calls, CountConfig

DEFAULT = CountConfig()


@dataclasses.dataclass
class RetryableReport:
    """Report of a step with parts that may succeed next time."""

    num_retryable: int


@pytest.fixture
def run_count(step: Step, raw: Path, tmp_path: Path):
    def run(config: CountConfig = DEFAULT, name: str = "out", cached: bool = True) -> StepRecord:
        cache = tmp_path / "cache" if cached else None
        return run_step(step, {"raw": raw}, tmp_path / name, config, NoProgress(), cache=cache)

    return run


def test_identical_call_is_reused(run_count, calls: Calls, tmp_path: Path) -> None:
    first, second = run_count(), run_count(name="again")
    assert (first.cached, second.cached, calls.count) == (False, True, 1)
    assert second.output == first.output
    assert second.report == {"total": 14}
    assert (tmp_path / "again" / "total.txt").read_text() == "14"
    assert second.worked_seconds == first.worked_seconds


def test_change_of_config_input_or_code_reruns_the_step(
    run_count, calls: Calls, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_count()
    assert not run_count(CountConfig(factor=3)).cached
    (raw / "c.txt").write_text("5")
    assert not run_count().cached
    monkeypatch.setattr(runner, "code_digest", lambda module: "another")
    assert not run_count().cached
    assert run_count().cached
    assert calls.count == 4


def test_package_versions_enter_the_key_and_the_lineage(
    run_count, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("2.1.0", "2.1.0", "2.2.0"):
        monkeypatch.setattr(runner, "package_versions", lambda module, version=version: {"numpy": version})
        record = run_count()
        assert record.packages == read_links(tmp_path / "out")[0].packages == {"numpy": version}
    assert len(list((tmp_path / "cache" / "steps" / "count").glob("*/step.json"))) == 2
    assert run_count().cached


def test_settings_without_effect_do_not_change_the_key(run_count, calls: Calls) -> None:
    run_count()
    assert run_count(CountConfig(workers=8)).cached
    assert calls.count == 1


def test_damaged_result_is_not_reused(run_count, calls: Calls, tmp_path: Path) -> None:
    run_count()
    (cached,) = (tmp_path / "cache" / "steps" / "count").glob("*/dataset/total.txt")
    cached.write_text("15")
    assert not run_count().cached
    assert (tmp_path / "out" / "total.txt").read_text() == "14"
    assert calls.count == 2


def test_deleting_a_run_does_not_affect_the_cache(run_count, tmp_path: Path) -> None:
    run_count()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    assert run_count().cached
    assert (tmp_path / "out" / "total.txt").read_text() == "14"


def test_step_runs_every_time_without_a_cache(run_count, calls: Calls) -> None:
    assert not run_count(cached=False).cached
    assert not run_count(cached=False).cached
    assert calls.count == 2


def test_oldest_results_are_evicted(run_count, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MAX_ENTRIES", 2)
    for factor in range(2, 6):
        run_count(CountConfig(factor=factor))
    assert len(list((tmp_path / "cache" / "steps" / "count").glob("*/step.json"))) == 2
    assert run_count(CountConfig(factor=5)).cached


def test_result_with_retryable_parts_is_not_reused(run_count, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step reports a transient failure first, and none the second time."""
    module = sys.modules["components.count.step"]
    plain, left = module.count, [1, 0]

    def count(**received: Any) -> Any:
        plain(**received)
        return RetryableReport(num_retryable=left.pop(0))

    monkeypatch.setattr(module, "count", count)
    assert [run_count().cached for _ in range(3)] == [False, False, True]


def test_unfinished_results_are_deleted_after_a_week(run_count, tmp_path: Path) -> None:
    steps = tmp_path / "cache" / "steps" / "count"
    for name, age_s in (("left", 8 * 24 * 3600), ("busy", 8 * 24 * 3600), ("fresh", 3600)):
        (steps / name / ".dataset.partial").mkdir(parents=True)
        os.utime(steps / name, (time.time() - age_s,) * 2)
    with locked(steps / "busy"):
        run_count()
    assert {path.name for path in steps.iterdir() if path.is_dir()} >= {"busy", "fresh"}
    assert not (steps / "left").exists()


def test_shared_cache_folder_is_passed_to_the_step(
    step: Step, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = []
    module = sys.modules["components.count.step"]
    plain = module.count

    def count(*, analysis: Path | None = None, **rest: Any) -> Any:
        received.append(analysis)
        return plain(**rest)

    monkeypatch.setattr(module, "count", count)
    sharing = dataclasses.replace(step, shared_cache="analysis")
    for cache in (tmp_path / "cache", None):
        run_step(sharing, {"raw": raw}, tmp_path / "out", DEFAULT, NoProgress(), cache=cache)
    assert received == [tmp_path / "cache" / "analysis", None]


def test_missing_input_is_reported(step: Step, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count needs raw: .*nothing does not exist"):
        run_step(step, {"raw": tmp_path / "nothing"}, tmp_path / "out", CountConfig(), NoProgress())


def test_lineage_records_digests_of_inputs_and_output(run_count, raw: Path, tmp_path: Path) -> None:
    record = run_count()
    (link,) = read_links(tmp_path / "out")
    assert link.step == "count"
    assert link.inputs == {"raw": input_digest(raw)}
    assert link.output == record.output == input_digest(tmp_path / "out")
    assert resolve_lineage(str(tmp_path / "out")) == [link]
    assert read_json(tmp_path / "out" / RUN_MANIFEST)["steps"][0]["commit"]
    with pytest.raises(ValueError, match=r"has no run\.json"):
        resolve_lineage(str(raw))


def test_wall_time_and_peak_memory_are_measured(run_count) -> None:
    record = run_count()
    assert record.peak_rss_mb > 10
    assert 0 < record.seconds < 60


def test_input_digest_follows_changes_of_a_source_folder(tmp_path: Path) -> None:
    assert input_digest("performer") == input_digest("performer")
    assert input_digest("s3://bucket/prefix") == ""
    (tmp_path / "a.mp4").write_bytes(b"1")
    first = input_digest(str(tmp_path))
    (tmp_path / "b.mp4").write_bytes(b"2")
    assert input_digest(str(tmp_path)) != first
