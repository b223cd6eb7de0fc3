"""A job that crashes, hangs or uses too much memory fails alone, wherever it runs."""

from unittest import mock

import pytest

from components.curate.run.executor import Executor, Task
from components.runtime.guarded_worker import Budget
from tests.curate.abort import lost, misbehave

JOBS = ["fine", "crash", "hang", "sleep", "eat", "well"]
ENDS = {
    "fine": None, "crash": "worker_died", "hang": "too_slow", "sleep": "too_slow", "eat": "too_much_memory",
    "well": None,
}  # fmt: skip


def test_misbehaving_jobs_fail_alone() -> None:
    task = Task(misbehave, lost, Budget(seconds=5.0, rss_mb=400.0))
    with Executor("process", 2) as executor:
        done = dict(executor.map(task, JOBS))
        again = dict(executor.map(task, ["fine"]))
    assert {JOBS[number]: outcome.get("reason") for number, outcome in done.items()} == ENDS
    assert again == {0: {"job": "fine"}}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "cannot be started here .no room for it"),
        ("10.0.0.1:1", "cannot be joined at 10.0.0.1:1 .no room for it"),
    ],
)
def test_ray_start_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str | None, message: str) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", mock.Mock(side_effect=RuntimeError("no room for it\nand many more lines")))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with Executor("ray", 1) as executor, pytest.raises(ValueError, match=rf"{message}.*executor=process.*resume"):
        next(executor.map(Task(misbehave, lost), ["fine"]))


@pytest.mark.slow
def test_misbehaving_jobs_fail_alone_under_ray() -> None:
    pytest.importorskip("ray")
    task = Task(misbehave, lost, Budget(seconds=5.0, rss_mb=400.0))
    with Executor("ray", 1) as executor:
        done = dict(executor.map(task, JOBS))
    assert {JOBS[number]: outcome.get("reason") for number, outcome in done.items()} == ENDS
