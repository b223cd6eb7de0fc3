"""MP4 writer and audio reader: atomic files, bounded tables, resampling, and readers that stay on this machine."""

import http.server
import threading
from collections.abc import Iterator

import av
import numpy as np
import pytest

from serving.media.image import read_image
from serving.media.mp4 import AudioReader, Mp4Writer
from tests.serving.media.files import tone, write_playlist, write_wav


@pytest.fixture
def web_server() -> Iterator[tuple[str, list[str]]]:
    """A loopback web server: its address, and the paths that were requested."""
    requested: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", requested
        server.shutdown()
        thread.join()


def test_audio_reader_resamples_to_24_khz_mono(tmp_path):
    reader = AudioReader(write_wav(tmp_path / "a.wav", tone(1.0, 44_100), 44_100, channels=2))
    blocks = [reader.read(5000) for _ in range(6)]
    read = np.concatenate([block for block, _ in blocks])
    assert abs(sum(count for _, count in blocks) - 24_000) <= 64
    assert np.corrcoef(read[500:23_000], tone(1.0)[500:23_000])[0, 1] > 0.99
    assert abs(reader.expected_samples - 24_000) <= 24


def test_audio_reader_read_all_returns_what_read_has_left(tmp_path):
    samples = tone(0.5)
    reader = AudioReader(write_wav(tmp_path / "a.wav", samples))
    first, count = reader.read(1000)
    assert count == 1000
    assert np.array_equal(np.concatenate([first, reader.read_all()]), samples)
    assert reader.read(10)[1] == 0


@pytest.mark.parametrize("name", ["voice.wav", "voice.mp4", "playlist.m3u8"])
def test_readers_never_open_an_address_from_inside_a_file(tmp_path, web_server, name):
    url, requested = web_server
    path = write_playlist(tmp_path / name, f"{url}/segment.ts")
    with pytest.raises(ValueError, match=r"not a readable audio file|no audio track|fails to decode"):
        AudioReader(path).read(1000)
    with pytest.raises(ValueError, match=r"not a readable image|not an image"):
        read_image(path, 16)
    assert requested == []


def test_mp4_writer_leaves_no_file_after_a_failure(tmp_path):
    def fail() -> None:
        with Mp4Writer(tmp_path / "o.mp4", height_px=16, width_px=16) as writer:
            writer.write(np.zeros((2, 16, 16, 3), np.uint8), np.zeros(2000, np.int16))
            raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_mp4_writer_rejects_an_unwritable_path_on_open(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"o\.mp4 cannot be written \(.*\): choose another path"):
        Mp4Writer(tmp_path / "file" / "o.mp4", height_px=16, width_px=16)


def test_mp4_writer_rejects_odd_sizes(tmp_path):
    with pytest.raises(ValueError, match="even"):
        Mp4Writer(tmp_path / "o.mp4", height_px=15, width_px=16)


def test_mp4_writer_tables_do_not_grow_with_length(tmp_path):
    """Sample tables are written with each fragment; the file still knows its duration and can be seeked."""
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
