"""DVC runs a stage through the same command, and not again when nothing has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from tests.contract.project import ROOT


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A checkout without git whose source is a folder with one short video."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    for package in ("components", "lpm_model"):
        (tmp_path / package).symlink_to(ROOT / package)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**values, "data": {"source": "videos"}}))
    videos = tmp_path / "videos"
    videos.mkdir()
    with av.open(str(videos / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), i, np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    (videos / "consent.yaml").write_text("licence: CC0-1.0\nconsent_ref: nobody is shown\n")
    return tmp_path


def dvc(workspace: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=workspace, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_stage_runs_once(workspace: Path) -> None:
    dvc(workspace, "config", "core.no_scm", "true")
    assert "Running stage 'ingest'" in dvc(workspace, "repro", "ingest")
    (media,) = (workspace / "workspace" / "raw" / "media").iterdir()
    assert media.suffix == ".mp4"
    assert "Running stage" not in dvc(workspace, "repro", "ingest")
