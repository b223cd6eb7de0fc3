"""Rendering a conversation: the file, its clock, its sound, constant chunks, and clear refusals."""

import wave
from pathlib import Path

import av
import numpy as np
import pytest

import serving.talk as talk
from serving.media.mp4 import Mp4Writer, AudioReader, read_picture, square


class LoudModel:
    """Paints each frame as bright as the loudness of its own samples: what it shows is what it was fed."""

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


def write_wav(path, samples, rate=24_000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples.astype("<i2"), channels).tobytes())
    return path


def read_mp4(path):
    with av.open(str(path)) as container:
        video = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    with av.open(str(path)) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    return video, sound, rate


@pytest.fixture
def model(monkeypatch):
    import sys
    import types

    made = LoudModel()
    monkeypatch.setitem(sys.modules, "lpm_model.online", types.SimpleNamespace(load_online=lambda folder: made))
    return made


def tone(seconds, rate=24_000, level=8000):
    return (level * np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate)) / rate)).astype(np.int16)


def test_picture_and_sound_of_the_same_moment_meet_in_the_file(tmp_path, model):
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
    video, sound, rate = read_mp4(tmp_path / "o.mp4")
    assert (report.frames, video.shape, rate) == (48, (48, 32, 32, 3), 24_000)
    bright = np.flatnonzero(video.mean((1, 2, 3)) > 60)
    assert (bright.min(), bright.max()) == (24, 35)
    loud = np.flatnonzero(np.abs(sound) > 0.1)
    assert abs(loud.min() - 24_000) < 150
    assert abs(loud.max() - 36_000) < 150


def test_the_look_ahead_is_the_next_chunks_beginning_and_the_tail_is_cut(model):
    speak = np.arange(9_500, dtype=np.int16)
    chunks = list(talk.stream(model, None, talk.ArraySource(speak), talk.ArraySource(speak[:100]), text="smile"))
    assert [len(c.frames) for c in chunks] == [4, 4, 2]
    for (now, _, text), (later, _, _) in zip(model.windows[:-1], model.windows[1:], strict=True):
        assert np.array_equal(now[4000:], later[:1000])
        assert text == ["smile"]
    assert np.array_equal(np.concatenate([c.speak for c in chunks])[:9_500], speak)
    assert not np.concatenate([c.listen for c in chunks])[100:].any()


@pytest.mark.parametrize("samples", [1, 3999, 4000, 4001, 5000, 8000])
def test_every_length_gives_the_frames_that_it_reaches(model, samples):
    sound = talk.ArraySource(np.ones(samples, np.int16))
    frames = sum(len(c.frames) for c in talk.stream(model, None, sound, talk.ArraySource(np.zeros(0, np.int16))))
    assert frames == -(-samples // 1000)


class LateModel(LoudModel):
    """Shows what it made two steps before, as a pipelined model does."""

    def init_state(self, character, batch=1, seed=0):
        return []

    def step(self, state, speak, listen, text=None):
        frames, _ = super().step(state=0, speak=speak, listen=listen, text=text)
        held = [*state, frames]
        return (held[0], held[1:]) if len(held) > 2 else (frames[:, :0], held)

    def flush(self, state):
        return np.concatenate(state, axis=1), []


@pytest.mark.parametrize("samples", [1000, 4000, 4001, 9_500, 26_000])
def test_a_pipelined_model_gives_the_same_film(samples):
    speak = np.random.default_rng(0).integers(-20_000, 20_000, samples).astype(np.int16)
    plain, late = (
        list(talk.stream(model, None, talk.ArraySource(speak), talk.ArraySource(speak[:100])))
        for model in (LoudModel(), LateModel())
    )
    for a, b in zip(plain, late, strict=True):
        assert np.array_equal(a.frames, b.frames)
        assert np.array_equal(a.speak, b.speak)
        assert np.array_equal(a.listen, b.listen)


def test_mixing_clips_instead_of_wrapping():
    assert talk.mix(np.array([30_000], np.int16), np.array([30_000], np.int16)).tolist() == [32_767]
    assert talk.mix(np.array([-30_000], np.int16), np.array([-30_000], np.int16)).tolist() == [-32_768]


def test_sound_of_another_rate_and_layout_arrives_at_24_khz_mono(tmp_path):
    reader = AudioReader(write_wav(tmp_path / "a.wav", tone(1.0, 44_100), 44_100, channels=2))
    pieces = [reader.read(5000) for _ in range(6)]
    got = np.concatenate([p for p, _ in pieces])
    assert abs(sum(n for _, n in pieces) - 24_000) <= 64
    expected = tone(1.0)
    assert np.corrcoef(got[500:23_000], expected[500:23_000])[0, 1] > 0.99
    assert abs(reader.expected_samples - 24_000) <= 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.wav", "does not exist"),
        (lambda p: _text(p / "text.wav"), "not a readable sound"),
        (lambda p: _silent_video(p / "mute.mp4"), "no sound"),
    ],
)
def test_unusable_sounds_are_refused_with_the_remedy(tmp_path, model, make, message):
    good = write_wav(tmp_path / "good.wav", tone(0.2))
    with pytest.raises(ValueError, match=message):
        talk.render_conversation(tmp_path, np.zeros((8, 8, 3), np.uint8), make(tmp_path), good, tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()


def test_two_empty_sounds_are_refused(tmp_path, model):
    empty = write_wav(tmp_path / "e.wav", np.zeros(0, np.int16))
    for sounds in ((empty, empty), (empty, None)):
        with pytest.raises(ValueError, match="hold no sound"):
            talk.render_conversation(tmp_path, np.zeros((8, 8, 3), np.uint8), *sounds, tmp_path / "o.mp4")
    with pytest.raises(ValueError, match="give at least one sound file"):
        talk.render_conversation(tmp_path, np.zeros((8, 8, 3), np.uint8), None, None, tmp_path / "o.mp4")


def test_a_sound_that_is_left_out_is_silence(tmp_path, model):
    spoken = write_wav(tmp_path / "s.wav", tone(0.5, level=20_000))
    image = np.zeros((32, 32, 3), np.uint8)
    for number, sounds in enumerate(((spoken, None), (None, spoken))):
        talk.render_conversation(tmp_path, image, *sounds, tmp_path / f"{number}.mp4")
    (speaks, heard, _), (listens, heard_too, _) = (read_mp4(tmp_path / f"{number}.mp4") for number in range(2))
    assert len(speaks) == len(listens) == 12
    assert speaks.mean() > listens.mean() + 10
    assert np.allclose(heard, heard_too)


def test_pictures_are_read_squared_and_refused(tmp_path, monkeypatch):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = (200, 30, 30)
    with av.open(str(tmp_path / "a.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 80, 40, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    got = read_picture(tmp_path / "a.png", 16)
    assert got.shape == (16, 16, 3)
    assert np.abs(got.astype(int) - (200, 30, 30)).max() <= 2
    with pytest.raises(ValueError, match="does not exist"):
        read_picture(tmp_path / "b.png", 16)
    with pytest.raises(ValueError, match="not a readable picture"):
        read_picture(_text(tmp_path / "t.png"), 16)
    with pytest.raises(ValueError, match="not a picture"):
        read_picture(write_wav(tmp_path / "s.wav", tone(0.1)), 16)
    monkeypatch.setattr("serving.media.mp4.MAX_PICTURE_PX", 1000)
    with pytest.raises(ValueError, match="80x40 px"):
        read_picture(tmp_path / "a.png", 16)
    with pytest.raises(ValueError, match="convert it to RGB"):
        square(np.zeros((4, 4), np.uint8), 4)


def test_a_failed_rendering_leaves_no_file(tmp_path):
    def broken():
        with Mp4Writer(tmp_path / "o.mp4", height_px=16, width_px=16) as writer:
            writer.write(np.zeros((2, 16, 16, 3), np.uint8), np.zeros(2000, np.int16))
            raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_talk_keeps_what_it_has_written(tmp_path):
    def interrupted(chunks):
        for _ in range(chunks):
            voice = np.zeros(4000, np.int16)
            yield talk.Chunk(frames=np.zeros((4, 16, 16, 3), np.uint8), speak=voice, listen=voice)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"o\.mp4 holds the 2\.0 s until then"):
        talk.write_chunks(interrupted(12), tmp_path / "o.mp4", size_px=16)
    video, _, _ = read_mp4(tmp_path / "o.mp4")
    assert len(video) == 48
    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        talk.write_chunks(interrupted(0), tmp_path / "none.mp4", size_px=16)
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"o\.mp4 cannot be written \(.*\): choose another place"):
        Mp4Writer(tmp_path / "file" / "o.mp4", height_px=16, width_px=16)


def test_no_table_of_the_file_grows_with_its_length(tmp_path):
    """The boxes of samples lie in fragments, which are written and forgotten; the whole still says how long it is."""
    path = tmp_path / "o.mp4"
    with Mp4Writer(path, height_px=16, width_px=16) as writer:
        for _ in range(30):
            writer.write(np.zeros((24, 16, 16, 3), np.uint8), np.zeros(24_000, np.int16))
    data = path.read_bytes()
    moov = data.index(b"moov")
    assert int.from_bytes(data[moov - 4 : moov], "big") < 2000
    assert data.count(b"moof") >= 3
    with av.open(str(path)) as container:
        assert container.duration / 1e6 == pytest.approx(30, abs=0.2)
        container.seek(20_000_000)
        assert next(container.decode(video=0)).time <= 20 + 1e-6


def test_odd_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="even"):
        Mp4Writer(tmp_path / "o.mp4", height_px=15, width_px=16)


def _text(path: Path) -> Path:
    path.write_text("hello " * 100)
    return path


def _silent_video(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return path
