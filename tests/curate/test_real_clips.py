"""Clips of real people from packages: who speaks, who listens, which clips are rejected."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from components.curate.config import CurationConfig
from components.curate.labels.pairing import label_source
from components.curate.run.analyse import analyse
from components.curate.step import curate
from components.curate.video.analysis import Analysis
from components.dataset.manifest import read_rows
from components.dataset.sources import Source
from components.dataset.states import LISTEN, SPEAK, decode_states
from components.performer.real_clips import fetch_real_clips
from lpm_model.progress import NoProgress
from tests.curate.corpus import make_raw


@pytest.fixture(scope="module")
def rows(config: CurationConfig, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    try:
        clips = fetch_real_clips()
    except ValueError as error:
        pytest.skip(str(error))
    home = tmp_path_factory.mktemp("real")
    raw = make_raw(home / "raw", clips)
    report = curate(raw, home / "dataset", dataclasses.replace(config, mesh_stride=2), NoProgress())
    refused = {Path(item["file"]).stem: item["reason"] for item in report.rejected}
    assert refused in ({"franck": "no_audio"}, {})
    return read_rows(home / "dataset" / "manifest.parquet")


def seconds(rows: list[dict[str, object]], track: int) -> dict[int, float]:
    """Seconds of each state of one person of the press statement."""
    states = [
        decode_states(row["states"]) for row in rows if (row["source_id"], row["track"]) == ("obama_speech", track)
    ]
    return {code: sum(float((track == code).sum()) for track in states) / 24 for code in (0, 1, 2)}


def test_speaker_and_listener_in_one_shot(rows: list[dict[str, object]]) -> None:
    speaker, listener = seconds(rows, 0), seconds(rows, 1)
    assert speaker[1] > 3.0
    assert speaker[2] < 0.5
    assert listener[2] > 4.0
    assert listener[1] == 0.0


def analysis_of(name: str, config: CurationConfig) -> Analysis:
    """Analyse one clip; those without audio count as silent."""
    try:
        files = {file.stem: file for file in fetch_real_clips()}
    except ValueError as error:
        pytest.skip(str(error))
    if name not in files:
        pytest.skip(f"{name} is not available here")
    source = Source(
        source_id=name, file=files[name].name, sha256="", bytes=0, origin="folder", licence="", consent_ref=""
    )
    return analyse(files[name].parent, source, dataclasses.replace(config, require_audio=False, mesh_stride=2))


@pytest.fixture(scope="module")
def press(config: CurationConfig) -> Analysis:
    """A speaker and a listener in one shot."""
    return analysis_of("obama_speech", config)


def test_90_percent_of_voiced_frames_are_labelled_correctly(press: Analysis, config: CurationConfig) -> None:
    found = label_source(press, None, config.states)
    assert found.same_shot_partner == [1, 0]
    for track, labels, state in zip(press.tracks, found.labels, (SPEAK, LISTEN), strict=True):
        voiced = press.speech[track.start : track.stop] > 0.5
        assert (labels.states[voiced] == state).mean() >= 0.9


def test_text_scorer_finds_the_caption_overlay(press: Analysis) -> None:
    rows = press.traces["text"]
    for frame in np.unique(rows[:, 0]):
        boxes = rows[(rows[:, 0] == frame) & ~np.isnan(rows[:, 1])]
        low = boxes[boxes[:, 2] > 0.6 * press.header.height_px]
        if frame < 72:
            assert len(low) == 0  # the overlay starts after three seconds
        elif frame >= 96:
            assert (low[:, 3] - low[:, 1]).sum() > 0.2 * press.header.width_px


@pytest.mark.slow
def test_long_listener_does_not_speak(config: CurationConfig) -> None:
    analysis = analysis_of("franck", config)
    states = np.concatenate([labels.states for labels in label_source(analysis, None, config.states).labels])
    print(f"{len(states)} frames: " + ", ".join(f"{v}: {(states == v).mean():.3f}" for v in np.unique(states)))
    assert (states != SPEAK).mean() >= 0.9


def test_each_person_has_a_separate_crop(rows: list[dict[str, object]]) -> None:
    boxes = {row["track"]: row["crop_box"] for row in rows if row["source_id"] == "obama_speech"}
    assert set(boxes) == {0, 1}
    for track, (x, y, width, height) in boxes.items():
        assert width == height
        assert 0 <= x <= 320 - width
        assert 0 <= y <= 240 - height
        other = next(row["face_box"] for row in rows if row["source_id"] == "obama_speech" and row["track"] != track)
        centre = (other[0] + other[2]) / 2
        assert not x < centre < x + width


def test_talking_heads_speak(rows: list[dict[str, object]]) -> None:
    for name in ("jwpIntro", "testMovie"):
        states = [decode_states(row["states"]) for row in rows if row["source_id"] == name]
        assert sum((track == 1).sum() for track in states) > 48
        assert sum((track == 2).sum() for track in states) < 12


def test_low_frame_rate_sources_are_not_frozen(rows: list[dict[str, object]]) -> None:
    assert all(row["frozen_s"] < 0.5 for row in rows)
    assert all(row["kept"] for row in rows)
