"""DVC runs the same commands as stages, and reruns a stage exactly when its code, settings or inputs change."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from components.runtime.code_closure import PACKAGES, code_closure
from components.runtime.steps import STEPS
from lpm_model.files import read_json
from pipelines.dvc_stages import CODE, CODE_STAGE, dvc_stages, dvc_yaml, write_code_digests
from tests.contract.project import ROOT

Dvc = Callable[..., str]


def dvc_in(folder: Path) -> Dvc:
    """Return a function that runs dvc in a folder and returns what it prints."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
    }

    def dvc(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return dvc


def stages_run(output: str) -> list[str]:
    """Return the names of the stages that ran, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.fixture
def video_folder(tmp_path: Path) -> Path:
    """A DVC project without git whose source is a folder with one short video."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout of the project with the real code, settings and stages, whose steps only join their inputs."""
    skipped = shutil.ignore_patterns("__pycache__", "node_modules", "dist", "*.safetensors")
    for package in (*PACKAGES, "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=skipped)
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    for name in ("params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    stages = dvc_stages()
    for verb in STEPS:
        (output,) = stages["stages"][verb]["outs"]
        inputs = [path if path.endswith(".json") else f"{path}/joined" for path in stages["stages"][verb]["deps"]]
        stages["stages"][verb]["cmd"] = f"mkdir -p {output} && cat {' '.join(inputs)} > {output}/joined"
    del stages["metrics"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(stages))
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    return tmp_path


def append(path: Path, text: str) -> None:
    with path.open("a") as handle:
        handle.write(text)


def test_dvc_yaml_is_up_to_date() -> None:
    """After a change of the table of steps: python -m pipelines.dvc_stages."""
    assert (ROOT / "dvc.yaml").read_text() == dvc_yaml()


def test_code_digests_list_exactly_the_code_that_a_step_reaches(tmp_path: Path) -> None:
    write_code_digests(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(STEPS)
    for verb, step in STEPS.items():
        assert read_json(tmp_path / f"{verb}.json")["files"] == code_closure(step.module).files


def test_unchanged_step_does_not_run_again(video_folder: Path) -> None:
    dvc = dvc_in(video_folder)
    dvc("config", "core.no_scm", "true")
    assert stages_run(dvc("repro", "ingest")) == [CODE_STAGE, "ingest"]
    (media,) = (video_folder / "workspace" / "raw" / "media").iterdir()
    assert media.suffix == ".mp4"
    assert stages_run(dvc("repro", "ingest")) == [CODE_STAGE]


def test_only_changed_code_runs_a_stage_and_those_after_it(checkout: Path) -> None:
    dvc, curate = dvc_in(checkout), checkout / "components" / "curate"
    assert stages_run(dvc("repro")) == [CODE_STAGE, *STEPS]
    before = read_json(checkout / CODE / "curate.json")
    append(curate / "scorers" / "camera.py", "# a comment\n")
    append(curate / "README.md", "More words.\n")
    config = curate / "config.py"
    config.write_text(config.read_text().replace('help="', 'help="Note: '))
    assert stages_run(dvc("repro")) == [CODE_STAGE]
    assert read_json(checkout / CODE / "curate.json") == before
    append(curate / "scorers" / "camera.py", "UNUSED = 1\n")
    assert stages_run(dvc("repro")) == [CODE_STAGE, "curate", "train", "distill", "evaluate", "deploy"]
    after = read_json(checkout / CODE / "curate.json")["files"]
    assert [path for path in after if after[path] != before["files"][path]] == ["components/curate/scorers/camera.py"]


def test_experiment_changes_one_setting_and_no_other(checkout: Path) -> None:
    dvc, path = dvc_in(checkout), checkout / "params.yaml"
    path.write_text(path.read_text().replace("  steps: 740", "  steps: 739"))
    before = yaml.safe_load(path.read_text())
    dvc("exp", "run", "-S", "train.batch=3", "train")
    after = yaml.safe_load(path.read_text())
    assert (before["train"]["steps"], after["train"]["batch"]) == (739, 3)
    after["train"]["batch"] = before["train"]["batch"]
    assert after == before
