"""A long source tells how far it is, from whatever process works on it; when it is done, nothing is left."""

import logging
import os
import time
from pathlib import Path

import pytest

from components.runtime import heartbeat


def test_a_source_tells_its_frames_and_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_EVERY_S", 0.0)
    with heartbeat.beating(tmp_path / "one", "media/film.mp4"):
        assert heartbeat.lines(tmp_path) == []  # nothing is known yet
        frames = heartbeat.counted(iter(range(100)), 100)
        for _ in range(26):  # the 26th is asked for after the 25th is done
            next(frames)
        (line,) = heartbeat.lines(tmp_path)
        assert line.startswith("media/film.mp4 25 % (25 of 100 frames), 0.0 min left")
    assert list((tmp_path / "one").iterdir()) == []


def test_the_run_says_it_now_and_then_and_not_of_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO), heartbeat.beating(tmp_path / "one", "film.mp4"):
        frames = heartbeat.counted(iter(range(10)), 10)
        next(frames), next(frames)
        with heartbeat.told(tmp_path, "looking at sources", every_s=0.02):
            time.sleep(0.2)
        assert any(line.startswith("looking at sources: film.mp4 10 %") for line in caplog.messages)
        long_ago = time.time() - 1000
        os.utime(tmp_path / "one" / "heartbeat.json", (long_ago, long_ago))
        assert heartbeat.lines(tmp_path) == []
