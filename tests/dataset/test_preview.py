"""The preview page shows the same windows as the training run, with audio, references and captions."""

import base64
import io
import re
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from components.dataset.preview import preview
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.progress import NoProgress
from lpm_model.sampler import BaseModel
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.base.train import clip_batches
from lpm_model.training.engine.shard_reader import read_clips
from pipelines.cli import main
from tests.lpm_model import tiny


@pytest.fixture
def settings(tmp_path: Path) -> BaseTraining:
    encoder = tiny.write_autoencoder(tmp_path / "autoencoder")
    tiny.write_dataset(tmp_path / "dataset", encoder)
    return BaseTraining(
        model=tiny.MODEL, steps=4, batch=2, clip_latents=4, crop_steps=2, full_frame_every=9, crop_batch=3, crop_size=2,
        autoencoder=str(encoder), noise_aug_prob=0.5, references=3, reference_prob=1.0,
    )  # fmt: skip


def found(page: str, kind: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(rf"data:{kind};base64,([^\"]+)", page)]


def test_preview_shows_the_training_batches(settings: BaseTraining, tmp_path: Path) -> None:
    assert preview(tmp_path / "dataset", tmp_path / "page.html", settings, 4, NoProgress()) == 3 + 3 + 2 + 2
    page = (tmp_path / "page.html").read_text()
    clips = read_clips(tmp_path / "dataset")
    model = BaseModel(tiny.MODEL, load_autoencoder(Path(settings.autoencoder)), tiny.SIZE_PX)
    source = clip_batches(clips, model, settings, 0)
    windows = [window for step in range(4) for window in source.make(step).windows]
    titles = re.findall(r"<b>(.*?)</b>", page)
    assert titles == [
        f"{w.key}, from latent frame {w.start}"
        + (f", crop at row {w.corner[0]}, column {w.corner[1]}" if w.corner else "")
        for w in windows
    ]
    assert sum(window.corner is not None for window in windows) == 6
    sounds = found(page, "audio/wav")
    assert len(sounds) == 20
    by_key = {clip.key: clip for clip in clips}
    for number, window in enumerate(windows):
        for role in range(2):
            with wave.open(io.BytesIO(sounds[2 * number + role])) as file:
                played = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            voice = source.voices(by_key[window.key], window.noisy[role])[role]
            span = voice[window.start * 4000 : (window.start + 3) * 4000]
            assert np.abs(played - span.numpy() * 32767).max() <= 1
    assert len(found(page, "image/png")) == 10 * (3 + 1)
    with av.open(io.BytesIO(found(page, "video/mp4")[-1])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
        assert container.streams.video[0].width == tiny.SIZE_PX
    assert "a woman speaks" in page
    assert "with noise" in page
    assert 'title="speak"' in page


def test_preview_command_reports_bad_datasets(
    settings: BaseTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--dataset", str(tmp_path / "nowhere")], "is not a folder: give the one that `lpm curate` wrote"),
        (["--dataset", str(tmp_path / "dataset")], "encoded with another autoencoder"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["data", "preview", *arguments, "--out", str(tmp_path / "p.html")])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
