"""The KFP pipeline under kfp's local runner: real tasks, real failures."""

import subprocess
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from lpm_model.files import read_json
from pipelines import sources
from pipelines.config import load_config
from pipelines.local import RunFailedError, run_pipeline
from pipelines.sources import with_real_clips


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with one video without people, and one file that is not a video."""
    folder = tmp_path / "videos"
    folder.mkdir()
    with av.open(str(folder / "nobody.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for i in range(48):
            frame = np.full((128, 128, 3), 5 * i % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "consent.yaml").write_text("licence: CC0-1.0\nconsent_ref: nobody is shown\n")
    return folder


def test_failing_step_stops_the_run_with_a_reason(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    events: list[dict[str, object]] = []
    with pytest.raises(RunFailedError, match=r"(?s)curate failed: no clip is left.*\(log: .*run\.log\)"):
        run_pipeline(
            load_config([f"data.source={videos}", "curate.workers=1", "curate.require_audio=false"]),
            tmp_path / "runs",
            run_id="one",
            cache=tmp_path / "cache",
            watch=events.append,
        )
    run = tmp_path / "runs" / "one"
    record = read_json(run / "steps" / "ingest.json")
    assert record["cached"] is False
    assert [item["file"] for item in read_json(run / "raw" / "ingest.json")["rejected"]] == ["broken.mp4"]
    assert not (run / "steps" / "train.json").exists()
    assert not (run / "summary.json").exists()
    assert not (run.parent / "latest").exists(), "serve and talk do not open a failed run"
    assert {"ingest"} <= {event["step"] for event in events} <= {"ingest", "curate"}
    assert any(event.get("finished") for event in events)


def test_interrupted_run_leaves_no_process(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(load_config([f"data.source={videos}"]), tmp_path / "runs", run_id="one", watch=_interrupt)
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]


def _interrupt(_event: object) -> None:
    raise KeyboardInterrupt


def test_run_id_cannot_be_reused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    with pytest.raises(ValueError, match="exists already"):
        run_pipeline(load_config(), tmp_path / "runs", run_id="one")


def test_real_clips_are_added_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.performer import real_clips

    monkeypatch.setattr(real_clips, "fetch_real_clips", lambda out: [out / "a.mp4", out / "b.mp4"])
    config, note = with_real_clips(load_config(["data=demo", "data.real_clips=true"]), tmp_path)
    assert config.ingest.extra_folders == (str(tmp_path),)
    assert config.ingest.allow_unconsented
    assert note.startswith("added 2 clips of real people who have not consented")
    for overrides in ([], ["data=demo"]):
        assert with_real_clips(load_config(overrides)) == (load_config(overrides), "")
        assert not load_config(overrides).ingest.allow_unconsented


def test_run_continues_without_a_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        raise OSError("no network")

    monkeypatch.setattr(subprocess, "run", refuse)
    config, note = sources.with_real_clips(load_config(["data.real_clips=true"]), tmp_path)
    assert config.ingest.extra_folders == ()
    assert not config.ingest.allow_unconsented
    assert note.startswith("no real clips (")
