"""Rendered recordings: decodable, in sync, deterministic, and separate from their ground truth."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from components.performer.compose import (
    HELDOUT_PEOPLE,
    conversation,
    identity_seeds,
    recordings_of,
    render_corpus,
)
from components.performer.config import PerformerConfig
from components.performer.media import write_mp4
from lpm_model.digests import file_digest
from lpm_model.progress import NoProgress

CONFIG = PerformerConfig(conversations=2, seconds_per_conversation=6.0, size_px=64, workers=2)
FRAMES = 144


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    render_corpus(folder / "media", CONFIG, NoProgress(), folder / "ground_truth")
    return folder


def decode(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Decode frames, audio (float, from its first time stamp) and frame rate."""
    import av

    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        video = []
        for frame in container.decode(video=0):
            assert frame.pts * frame.time_base == pytest.approx(len(video) / 24)
            video.append(frame.to_ndarray(format="rgb24"))
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
        assert blocks[0].pts == 0
        assert blocks[0].sample_rate == 24_000
        return np.stack(video), np.concatenate([block.to_ndarray()[0] for block in blocks]), rate


def test_write_mp4_keeps_audio_and_video_in_sync(tmp_path: Path) -> None:
    """A flash and a click at the same time decode at the same time: no encoder delay remains."""
    marks = [0, 30, 77]
    video = np.full((96, 64, 64, 3), 40, np.uint8)
    pcm = np.zeros(96_000, np.int16)
    for mark in marks:
        video[mark] = 250
        pcm[mark * 1000 : mark * 1000 + 300] = 20_000 * np.sin(np.arange(300) * 0.5)
    write_mp4(tmp_path / "x.mp4", video, pcm, 16)
    video, audio, rate = decode(tmp_path / "x.mp4")
    assert rate == 24
    assert np.flatnonzero(video.mean(axis=(1, 2, 3)) > 145).tolist() == marks
    loud = np.flatnonzero(np.abs(audio) > 0.2)
    onsets = loud[np.r_[0, np.flatnonzero(np.diff(loud) > 5000) + 1]]
    assert np.abs(onsets - np.asarray(marks) * 1000).max() < 24  # 1 ms
    with pytest.raises(ValueError, match="1000 samples a frame"):
        write_mp4(tmp_path / "y.mp4", video, pcm[:-1], 16)


def test_two_shot_camera_is_optional(tmp_path: Path) -> None:
    sides = recordings_of(tmp_path, PerformerConfig(two_shots=False), 3)
    assert [one.camera for one in sides] == ["a", "b"]
    assert recordings_of(tmp_path, PerformerConfig(), 3)[:2] == sides


def test_recordings_decode_at_24_fps_with_audio_in_sync(corpus: Path) -> None:
    names = sorted(path.name for path in (corpus / "media").glob("*.mp4"))
    assert names == [f"train-00-00{i}_{camera}.mp4" for i in (0, 1) for camera in ("a", "b", "two_shot")]
    for name in names:
        video, audio, rate = decode(corpus / "media" / name)
        assert (len(video), rate) == (FRAMES, 24)
        assert video.shape[1:3] == (64, 128 if "two_shot" in name else 64)
        assert len(audio) == pytest.approx(FRAMES * 1000, abs=1024)
        if "two_shot" not in name:
            side = name.removesuffix(".mp4").split("_")[1]
            ground_truth = np.load(corpus / "ground_truth" / f"train-00-00{name[11]}_{side}.npz")
            spoken = (ground_truth["speak_pcm"] + 0.5 * ground_truth["listen_pcm"].astype(np.float32)) / 32768
            lags = np.fft.irfft(np.fft.rfft(audio[: FRAMES * 1000]) * np.conj(np.fft.rfft(spoken)))
            assert int(lags.argmax()) in (0, 1, len(lags) - 1)


def test_ground_truth_has_a_row_per_frame(corpus: Path) -> None:
    files = sorted((corpus / "ground_truth").glob("*.npz"))
    assert len(files) == 4
    for file in files:
        with np.load(file) as ground_truth:
            for name in ("jaw_open", "blendshapes", "rotation", "gaze", "state", "nod", "smile", "emotion"):
                assert len(ground_truth[name]) == FRAMES
            assert len(ground_truth["speak_pcm"]) == len(ground_truth["listen_pcm"]) == FRAMES * 1000
            assert ground_truth["blendshapes"].shape == (FRAMES, 52)
            assert set(ground_truth["state"]) <= {0, 1, 2}
            speaking = ground_truth["state"] == 1
            if speaking.any():
                assert str(ground_truth["text"])
                assert ground_truth["jaw_open"][speaking].mean() > 5 * ground_truth["jaw_open"][~speaking].mean()


def test_sidecars_name_consent_and_third_party_parts(corpus: Path) -> None:
    shared = yaml.safe_load((corpus / "media" / "consent.yaml").read_text())
    assert shared["consent_ref"] == "synthetic"
    assert "no rights of others" not in shared["licence"]
    for credit in ("facecap", "Bannaflak", "no licence text", "hibari", "Kokoro-82M", "en_US-joe", "lessac"):
        assert credit in shared["licence"]
    own = yaml.safe_load((corpus / "media" / "train-00-001_b.mp4.yaml").read_text())
    assert own == {**shared, "conversation_id": "train-00-001", "camera": "b", "person_hint": "performer-3"}


def test_interrupted_render_resumes_with_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, file_digest(path)) for path in (corpus / "media").glob("*.mp4")}
    (corpus / "media" / "train-00-001_b.mp4").unlink()
    render_corpus(corpus / "media", CONFIG, NoProgress(), corpus / "ground_truth")
    for path in sorted((corpus / "media").glob("*.mp4")):
        time, digest = before[path.name]
        assert file_digest(path) == digest  # the same seed gives the same bytes
        assert (path.stat().st_mtime_ns == time) == path.name.startswith("train-00-000")


def test_heldout_bank_has_its_own_people_and_sentences() -> None:
    heldout = PerformerConfig(bank="heldout", seconds_per_conversation=4.0)
    for seed in (0, 49):
        people = identity_seeds(PerformerConfig(seed=seed), 900)
        assert max(people) < HELDOUT_PEOPLE <= min(identity_seeds(PerformerConfig(seed=seed, bank="heldout"), 0))
    train, other = conversation(PerformerConfig(seconds_per_conversation=4.0), 1)[0], conversation(heldout, 1)[0]
    assert (train["a"].text, train["b"].text) != (other["a"].text, other["b"].text)


@pytest.mark.parametrize(
    "bad",
    [
        {"size_px": 100},
        {"conversations": 0},
        {"seed": 50},
        {"seconds_per_conversation": 1.0},
        {"voices": ("joe",)},
        {"workers": 0},
    ],
)
def test_invalid_options_name_the_remedy(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="give|ask"):
        PerformerConfig(**bad)  # type: ignore[arg-type]
