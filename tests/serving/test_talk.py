"""Offline rendering: audio and video aligned in the file, constant chunks, clear refusals."""

import sys
import types

import numpy as np
import pytest

import serving.talk as talk
from tests.serving.media.files import read_mp4, tone, write_silent_video, write_text, write_wav


class LoudnessModel:
    """Paints each frame as bright as the loudness of its own samples: the video shows what the model was fed."""

    chunk_samples, lookahead_samples, size_px = 4000, 1000, 32

    def __init__(self):
        self.windows = []

    def character(self, image, references=()):
        return image

    def init_state(self, character, batch=1, seed=0):
        return 0

    def step(self, state, speak, listen, text=None):
        self.windows.append((speak[0].numpy(), listen[0].numpy(), text))
        level = speak[0, :4000].reshape(4, 1000).abs().amax(1).numpy()
        frames = np.repeat((level * 255).astype(np.uint8), 32 * 32 * 3).reshape(1, 4, 32, 32, 3)
        return frames, state + 1


class PipelinedModel(LoudnessModel):
    """A model that returns frames two steps late."""

    def init_state(self, character, batch=1, seed=0):
        return []

    def step(self, state, speak, listen, text=None):
        frames, _ = super().step(state=0, speak=speak, listen=listen, text=text)
        queued = [*state, frames]
        return (queued[0], queued[1:]) if len(queued) > 2 else (frames[:, :0], queued)

    def flush(self, state):
        return np.concatenate(state, axis=1), []


@pytest.fixture
def model(monkeypatch):
    made = LoudnessModel()
    monkeypatch.setitem(sys.modules, "lpm_model.online", types.SimpleNamespace(load_online=lambda folder: made))
    return made


def test_render_conversation_aligns_video_and_audio(tmp_path, model):
    speak = np.zeros(48_000, np.int16)
    speak[24_000:36_000] = tone(0.5, level=20_000)
    image = np.full((48, 64, 3), 90, np.uint8)
    report = talk.render_conversation(
        tmp_path,
        image,
        write_wav(tmp_path / "s.wav", speak),
        write_wav(tmp_path / "l.wav", speak[:1000]),
        tmp_path / "o.mp4",
    )
    video, audio, rate = read_mp4(tmp_path / "o.mp4")
    assert (report.frames, video.shape, rate) == (48, (48, 32, 32, 3), 24_000)
    bright = np.flatnonzero(video.mean((1, 2, 3)) > 60)
    assert (bright.min(), bright.max()) == (24, 35)
    loud = np.flatnonzero(np.abs(audio) > 0.1)
    assert abs(loud.min() - 24_000) < 150
    assert abs(loud.max() - 36_000) < 150


def test_stream_lookahead_is_the_start_of_the_next_chunk(model):
    speak = np.arange(9_500, dtype=np.int16)
    chunks = list(talk.stream(model, None, talk.ArraySource(speak), talk.ArraySource(speak[:100]), text="smile"))
    assert [len(c.frames) for c in chunks] == [4, 4, 2]
    for (now, _, text), (later, _, _) in zip(model.windows[:-1], model.windows[1:], strict=True):
        assert np.array_equal(now[4000:], later[:1000])
        assert text == ["smile"]
    assert np.array_equal(np.concatenate([c.speak for c in chunks])[:9_500], speak)
    assert not np.concatenate([c.listen for c in chunks])[100:].any()


@pytest.mark.parametrize("samples", [1, 3999, 4000, 4001, 5000, 8000])
def test_stream_yields_the_frames_that_the_audio_covers(model, samples):
    audio = talk.ArraySource(np.ones(samples, np.int16))
    frames = sum(len(c.frames) for c in talk.stream(model, None, audio, talk.ArraySource(np.zeros(0, np.int16))))
    assert frames == -(-samples // 1000)


@pytest.mark.parametrize("samples", [1000, 4000, 4001, 9_500, 26_000])
def test_stream_of_a_pipelined_model_yields_the_same_video(samples):
    speak = np.random.default_rng(0).integers(-20_000, 20_000, samples).astype(np.int16)
    plain, pipelined = (
        list(talk.stream(model, None, talk.ArraySource(speak), talk.ArraySource(speak[:100])))
        for model in (LoudnessModel(), PipelinedModel())
    )
    for a, b in zip(plain, pipelined, strict=True):
        assert np.array_equal(a.frames, b.frames)
        assert np.array_equal(a.speak, b.speak)
        assert np.array_equal(a.listen, b.listen)


def test_mix_clips_instead_of_wrapping():
    assert talk.mix(np.array([30_000], np.int16), np.array([30_000], np.int16)).tolist() == [32_767]
    assert talk.mix(np.array([-30_000], np.int16), np.array([-30_000], np.int16)).tolist() == [-32_768]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.wav", "does not exist"),
        (lambda folder: write_text(folder / "text.wav"), "not a readable audio file"),
        (lambda folder: write_silent_video(folder / "mute.mp4"), "no audio track"),
    ],
)
def test_render_conversation_rejects_unusable_audio(tmp_path, model, make, message):
    good = write_wav(tmp_path / "good.wav", tone(0.2))
    with pytest.raises(ValueError, match=message):
        talk.render_conversation(tmp_path, np.zeros((8, 8, 3), np.uint8), make(tmp_path), good, tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()


def test_render_conversation_rejects_empty_audio(tmp_path, model):
    empty = write_wav(tmp_path / "e.wav", np.zeros(0, np.int16))
    for voices in ((empty, empty), (empty, None)):
        with pytest.raises(ValueError, match="hold no audio"):
            talk.render_conversation(tmp_path, np.zeros((8, 8, 3), np.uint8), *voices, tmp_path / "o.mp4")
    with pytest.raises(ValueError, match="give at least one audio file"):
        talk.render_conversation(tmp_path, np.zeros((8, 8, 3), np.uint8), None, None, tmp_path / "o.mp4")


def test_render_conversation_treats_a_missing_voice_as_silence(tmp_path, model):
    spoken = write_wav(tmp_path / "s.wav", tone(0.5, level=20_000))
    image = np.zeros((32, 32, 3), np.uint8)
    for number, voices in enumerate(((spoken, None), (None, spoken))):
        talk.render_conversation(tmp_path, image, *voices, tmp_path / f"{number}.mp4")
    (speaks, audio, _), (listens, same_audio, _) = (read_mp4(tmp_path / f"{number}.mp4") for number in range(2))
    assert len(speaks) == len(listens) == 12
    assert speaks.mean() > listens.mean() + 10
    assert np.allclose(audio, same_audio)


def test_write_chunks_keeps_what_was_written_before_ctrl_c(tmp_path):
    def interrupted(chunks):
        for _ in range(chunks):
            voice = np.zeros(4000, np.int16)
            yield talk.Chunk(frames=np.zeros((4, 16, 16, 3), np.uint8), speak=voice, listen=voice)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"o\.mp4 holds the first 2\.0 s"):
        talk.write_chunks(interrupted(12), tmp_path / "o.mp4", size_px=16)
    video, _, _ = read_mp4(tmp_path / "o.mp4")
    assert len(video) == 48
    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        talk.write_chunks(interrupted(0), tmp_path / "none.mp4", size_px=16)
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]
