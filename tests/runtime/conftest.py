"""A step that runs in milliseconds, to test the runner with."""

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.runtime.steps import Step
from lpm_model.config import setting
from lpm_model.files import staged, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class CountConfig:
    factor: int = 2
    workers: int = setting(1, help="Processes.", affects=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class CountReport:
    total: int


class Calls:
    """Counts the executions of the step."""

    def __init__(self) -> None:
        self.count = 0


def _count(calls: Calls) -> Any:
    def count(raw: Path, dataset: Path, config: CountConfig, progress: Any) -> CountReport:
        calls.count += 1
        numbers = [int(path.read_text()) for path in sorted(raw.glob("*.txt"))]
        with staged(dataset, resume=True) as work:
            total = config.factor * sum(progress.track(numbers, "count"))
            (work / "total.txt").write_text(str(total))
            write_json(work / "count.json", {"total": total})
        return CountReport(total=total)

    return count


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def step(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Step:
    """Replace `curate` with a step that adds up numbers."""
    for name, attributes in (
        ("components.count", {}),
        ("components.count.config", {"CountConfig": CountConfig}),
        ("components.count.step", {"count": _count(calls)}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return Step(
        verb="count", inputs={"raw": "raw"}, output="dataset", folder="dataset", config_name="CountConfig", about=""
    )


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.txt").write_text("3")
    (folder / "b.txt").write_text("4")
    return folder
