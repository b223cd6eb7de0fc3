"""Hostile files next to one good video: each is rejected with its reason, and none harms the run."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.curate.hostile import makers

REASONS = {
    "absurd_fps.avi": "too_short", "absurd_fps.mp4": "too_short", "audio_only.mp4": "no_video",
    "before_zero.mkv": "no_face", "bomb.mov": "too_big", "broken_index.mp4": "corrupt", "concat.avi": "corrupt",
    "concat.mp4": "corrupt", "cover.mp4": "corrupt", "eight_channels.mkv": "no_face", "empty.mp4": "empty",
    "gif.mp4": "corrupt", "header_16000.avi": "too_big", "header_50000.avi": "corrupt", "matroska_as.mp4": "no_face",
    "mp4_as.avi": "no_face", "new\nline.mp4": "no_face", "no_audio.mp4": "no_face", "no_index.mp4": "corrupt",
    "noise.webm": "corrupt", "odd_size.mkv": "no_face", "one_frame.mp4": "too_short", "photo.mp4": "corrupt",
    "playlist.mkv": "corrupt", "playlist.mp4": "corrupt", "quote'\"<script>alert(1)<b>.mp4": "no_face",
    "ribbon.mkv": "too_small", "ten_bit.mp4": "no_face", "ten_hours.mkv": "too_long", "text.mov": "corrupt",
    "truncated_moov.mp4": "corrupt", "two_videos.mkv": "no_face", "two_hours_two_frames.mkv": "standing_picture",
    "two_pixels.mkv": "too_small", "variable_rate.mkv": "no_face", "zeros.mp4": "corrupt",
}  # fmt: skip
"""Reason of each file in curation without ingest's checks; grey walls have no face."""

HANDLED = {"header_50000.mp4", "rotated.mp4"}
"""Files that are used: a header with a wrong size, and a video with rotation metadata."""

REFUSED = {
    "audio_only.mp4", "broken_index.mp4", "concat.avi", "concat.mp4", "cover.mp4", "empty.mp4", "gif.mp4",
    "header_50000.avi", "link_out.mp4", "matroska_as.mp4", "mp4_as.avi", "noise.webm", "photo.mp4", "pipe.mp4",
    "playlist.mkv", "playlist.mp4", "text.mov", "truncated_moov.mp4", "zeros.mp4",
}  # fmt: skip
"""Files that ingest rejects."""


@pytest.fixture(scope="module")
def outcome(sides: list[Path], autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("hostile")
    (home / "in").mkdir()
    shutil.copyfile(sides[0], home / "in" / "good.mp4")
    outside = Path(shutil.copyfile(sides[1], home / "outside.mp4"))
    (home / "in" / "consent.yaml").write_text("licence: CC0-1.0\nconsent_ref: test\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        made = makers(sides[0], outside, server.getsockname()[1])
        for name, make in made.items():
            make(home / "in" / name)
        command = [sys.executable, "-m", "tests.curate.hostile_run", str(home), str(autoencoder)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[3])
        with pytest.raises(BlockingIOError):  # nobody connected
            server.accept()
    assert run.returncode == 0, run.stderr[-3000:]
    return {**json.loads(run.stdout.splitlines()[-1]), "files": set(made)}


def test_hostile_files_are_rejected_with_reasons_and_good_file_is_used(outcome: dict[str, Any]) -> None:
    assert outcome["rejected"] == REASONS
    assert outcome["files"] == set(REASONS) | HANDLED | {"link_out.mp4", "pipe.mp4", "folder.mp4"}
    assert outcome["clips"] > 0


def test_ingest_rejects_files_that_are_no_videos(outcome: dict[str, Any]) -> None:
    assert set(outcome["refused"]) >= REFUSED
    assert all(outcome["refused"].values())
    assert len(outcome["accepted"]) + len(outcome["refused"]) == len(
        outcome["files"]
    )  # the folder is none, good.mp4 is one
    assert all(name.isascii() and "\n" not in name and "<" not in name for name in outcome["accepted"])


def test_hostile_files_cost_little_time_and_memory(outcome: dict[str, Any]) -> None:
    assert outcome["timing"]["analysis"]["slowest_rejection_s"] < 10
    assert outcome["ingest_s"] < 30
    assert outcome["peak_mb"] < 2048
