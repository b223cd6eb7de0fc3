"""Progress within long sources is written by their worker, logged by the run, and deleted at the end."""

import logging
import os
import time
from pathlib import Path

import pytest

from components.runtime import heartbeat


def test_heartbeat_has_frames_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_BEAT_INTERVAL_S", 0.0)
    with heartbeat.report_progress(tmp_path / "one", "media/video.mp4"):
        assert heartbeat.progress_lines(tmp_path) == []  # no frame is finished yet
        frames = heartbeat.track_frames(iter(range(100)), 100)
        for _ in range(26):  # the 26th is requested after the 25th is done
            next(frames)
        (line,) = heartbeat.progress_lines(tmp_path)
        assert line.startswith("media/video.mp4 25 % (25 of 100 frames), 0.0 min left")
    assert list((tmp_path / "one").iterdir()) == []


def test_progress_is_logged_at_intervals_without_stale_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "_BEAT_INTERVAL_S", 0.0)
    with caplog.at_level(logging.INFO), heartbeat.report_progress(tmp_path / "one", "video.mp4"):
        frames = heartbeat.track_frames(iter(range(10)), 10)
        next(frames), next(frames)
        with heartbeat.log_progress(tmp_path, "analysing sources", interval_s=0.02):
            time.sleep(0.2)
        assert any(line.startswith("analysing sources: video.mp4 10 %") for line in caplog.messages)
        long_ago = time.time() - 1000
        os.utime(tmp_path / "one" / "heartbeat.json", (long_ago, long_ago))
        assert heartbeat.progress_lines(tmp_path) == []
