"""A run that is killed at a quarter, a half or three quarters of its work resumes to the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from components.curate.step import curate
from lpm_model.digests import dataset_digest, file_digest
from lpm_model.files import read_json, working_folder
from lpm_model.progress import NoProgress
from tests.curate.corpus import make_raw
from tests.curate.killed_run import settings


def halves(video: Path, folder: Path) -> list[Path]:
    """Split a video into two files at a keyframe near its middle."""
    parts = [folder / f"{video.stem.replace('_', '-')}-{number}.mp4" for number in (1, 2)]
    with av.open(str(video)) as given:
        middle_s = given.duration / av.time_base / 2
        keys = [float(p.pts * p.time_base) for p in given.demux(video=0) if p.is_keyframe and p.pts is not None]
    cut_s = min(keys[1:], key=lambda at: abs(at - middle_s))
    for number, part in enumerate(parts):
        with av.open(str(video)) as given, av.open(str(part), "w") as out:
            streams = [out.add_stream_from_template(stream) for stream in given.streams]
            for packet in given.demux():
                if packet.dts is not None and (float(packet.pts * packet.time_base) >= cut_s) == bool(number):
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)
    return parts


@pytest.fixture(scope="module")
def raw(sides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sources."""
    home = tmp_path_factory.mktemp("killed")
    return make_raw(home / "raw", [part for video in sides for part in halves(video, home)])


@pytest.fixture(scope="module")
def uninterrupted(raw: Path, autoencoder: Path) -> Path:
    """Dataset of an uninterrupted run."""
    curate(raw, raw.parent / "uninterrupted", settings(str(autoencoder), "inline"), NoProgress())
    return raw.parent / "uninterrupted"


def killed_at(raw: Path, dataset: Path, autoencoder: Path, executor: str, parts: int) -> dict[Path, float]:
    """Start a run and kill its process group when `parts` results are finished; return them with their times."""
    command = [sys.executable, "-m", "tests.curate.killed_run", str(raw), str(dataset), str(autoencoder), executor]
    run = subprocess.Popen(command, cwd=Path(__file__).parents[3], start_new_session=True)
    done: list[Path] = []
    pending = working_folder(dataset)
    while len(done) < parts:
        assert run.poll() is None
        time.sleep(0.02)
        done = [*pending.glob("parts/*/analysis.json"), *pending.glob("parts/*/clips.json")]
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not dataset.exists()
    return {path: path.stat().st_mtime for path in done}


@pytest.mark.parametrize(
    ("parts", "executor"),
    [
        (4, "process"),
        pytest.param(2, "process", marks=pytest.mark.slow),
        pytest.param(6, "process", marks=pytest.mark.slow),
        pytest.param(4, "ray", marks=pytest.mark.slow),
    ],
)
def test_killed_run_resumes(
    raw: Path, uninterrupted: Path, autoencoder: Path, tmp_path: Path, parts: int, executor: str
) -> None:
    done = killed_at(raw, tmp_path / "dataset", autoencoder, executor, parts)
    assert len(done) >= parts
    curate(raw, tmp_path / "dataset", settings(str(autoencoder), "inline"), NoProgress())
    timing = read_json(tmp_path / "dataset" / "timing.json")
    assert len(done) <= timing["analysis"]["reused"] + timing["clips"]["reused"] < 8
    for name in ("manifest.parquet", "curation.json", "dataset.json"):
        assert file_digest(tmp_path / "dataset" / name) == file_digest(uninterrupted / name)
    assert dataset_digest(tmp_path / "dataset") == dataset_digest(uninterrupted)
