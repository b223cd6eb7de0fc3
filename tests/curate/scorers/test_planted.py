"""Clips with planted defects, end to end: each is dropped for its own reason."""

from pathlib import Path

import pytest

from components.performer.media import write_mp4
from tests.benchmarks._planted import Material, halves
from tests.benchmarks.defects import RIGHT, judge, plant


@pytest.fixture(scope="module")
def clips(conversation: Path, sides: list[Path]) -> list[Material]:
    return [clip for file in sides for clip in halves(file, conversation / "ground_truth" / f"{file.stem}.npz")]


@pytest.mark.parametrize(
    "kind", ["letterboxed", "picture in picture", "flicker", "shifted audio", "hard cut", "silence"]
)
def test_planted_defect_is_dropped_for_its_reason(clips: list[Material], tmp_path: Path, kind: str) -> None:
    spoiled = plant(kind, clips, 0, 0)
    write_mp4(tmp_path / "spoiled.mp4", spoiled.frames, spoiled.audio, 20)
    verdict = judge(tmp_path / "spoiled.mp4")
    assert not verdict.kept
    assert set(verdict.reasons) & set(RIGHT[kind]), verdict


@pytest.mark.parametrize("number", [0, 3])
def test_clean_clip_is_kept(clips: list[Material], tmp_path: Path, number: int) -> None:
    write_mp4(tmp_path / "clean.mp4", clips[number].frames, clips[number].audio, 20)
    verdict = judge(tmp_path / "clean.mp4")
    assert verdict.kept, verdict
