import io
import itertools
import re

import av
import numpy as np
import pytest

from serving.media.fragments import ChunkDecoder, ChunkEncoder, boxes

SIZE = 64


def image(level: int) -> np.ndarray:
    frame = np.full((SIZE, SIZE, 3), level, np.uint8)
    frame[: SIZE // 2, :, 0] = 255 - level
    return frame


def click(at: int, total: int) -> np.ndarray:
    voice = np.zeros(total, np.int16)
    voice[at : at + 480] = (12_000 * np.sin(np.arange(480) / 4)).astype(np.int16)
    return voice


@pytest.fixture(scope="module", params=[0, 52_000])
def stream(request: pytest.FixtureRequest) -> tuple[int, bytes, list[bytes], np.ndarray, str]:
    start, chunks = request.param, 12
    frames = np.stack([image(10 + 4 * n) for n in range(4 * chunks)])
    voice = click(20_000, 4000 * chunks)
    encoder = ChunkEncoder(SIZE, start_pts=start)
    segments = [
        encoder.encode(start + 4000 * n, frames[4 * n : 4 * n + 4], voice[4000 * n : 4000 * n + 4000])
        for n in range(chunks)
    ]
    encoder.close()
    return start, encoder.init_segment, segments, frames, encoder.mime


def test_each_chunk_is_one_fragment_after_the_init_segment(stream: tuple) -> None:
    _, init, segments, _, mime = stream
    assert [name for name, _ in boxes(init)] == ["ftyp", "moov"]
    assert all([name for name, _ in boxes(segment)] == ["moof", "mdat"] for segment in segments)
    assert re.fullmatch(r'video/mp4; codecs="avc1\.42[0-9A-F]{4},mp4a\.40\.2"', mime)


def test_decoded_frames_match_in_content_and_time(stream: tuple) -> None:
    start, init, segments, frames, _ = stream
    with av.open(io.BytesIO(init + b"".join(segments))) as container:
        shown = [
            (frame.pts * frame.time_base * 24_000, frame.to_ndarray(format="rgb24"))
            for frame in container.decode(video=0)
        ]
    assert [pts for pts, _ in shown] == [start + 1000 * n for n in range(len(frames))]
    worst = max(
        np.abs(seen.astype(int) - sent.astype(int)).mean() for (_, seen), sent in zip(shown, frames, strict=True)
    )
    assert worst < 6


def test_decoded_voice_is_sample_aligned(stream: tuple) -> None:
    start, init, segments, _, _ = stream
    with av.open(io.BytesIO(init + b"".join(segments))) as container:
        blocks = list(container.decode(audio=0))
    wave = np.concatenate([block.to_ndarray()[0] for block in blocks])
    onset = blocks[0].pts * blocks[0].time_base * 24_000 + int(np.argmax(np.abs(wave) > 0.1))
    assert abs(onset - start - 20_000) <= 24  # one millisecond


def test_chunk_decoder_has_no_frame_delay(stream: tuple) -> None:
    start, init, segments, frames, _ = stream
    decoder = ChunkDecoder(init)
    chunks = [decoder.decode(segment) for segment in segments]
    assert [len(chunk.frames) for chunk in chunks] == [4] * len(segments)
    assert list(itertools.chain(*(chunk.pts for chunk in chunks))) == [start + 1000 * n for n in range(len(frames))]
    # AAC works on blocks of 1024 samples and looks one ahead: the voice trails the video by less than three of them.
    decoded = sum(chunk.voice.size for chunk in chunks)
    assert 4000 * len(segments) - 3 * 1024 < decoded <= 4000 * len(segments)


def test_streams_start_with_a_key_frame_and_repeat_it_every_second(stream: tuple) -> None:
    _, init, segments, _, _ = stream
    with av.open(io.BytesIO(init + segments[0])) as container:
        assert next(container.demux(video=0)).is_keyframe
    with av.open(io.BytesIO(init + b"".join(segments))) as container:
        keys = [packet.pts for packet in container.demux(video=0) if packet.is_keyframe]
    assert all(b - a <= 24_000 for a, b in itertools.pairwise(keys))
