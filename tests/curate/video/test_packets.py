"""Unwanted frames are not decoded, and the others are bit-equal to decoding everything."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from components.curate.config import SourceLimits
from components.curate.video.decode import video_frames
from components.curate.video.packets import decoded_frames

BASE = Fraction(1, 1200)
RATES = {
    "60 fps": [n * 20 for n in range(180)],
    "30 fps": [n * 40 for n in range(90)],
    "25 fps": [n * 48 for n in range(75)],
    "15 fps": [n * 80 for n in range(45)],
    "variable": list(np.cumsum([0, *np.random.default_rng(2).integers(8, 120, 90)])),
}
CODECS = {
    "closed": {"bframes": "3", "b-pyramid": "normal", "keyint": "40"},
    "open": {"bframes": "3", "b-pyramid": "strict", "keyint": "20", "open-gop": "1"},
    "no B": {"bframes": "0", "keyint": "30"},
}


def video(path: Path, stamps: list[int], codec: dict[str, str]) -> Path:
    """Moving noise in H.264 with a frame at each time stamp."""
    large = np.random.default_rng(1).integers(0, 255, (24, 80, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    given = ":".join(f"{name}={value}" for name, value in codec.items())
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "veryfast", "x264-params": given})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.time_base = BASE
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(large[:96, (at := 2 * number % 512) : at + 128].copy(), format="rgb24")
            frame.pts, frame.time_base = int(stamp), BASE
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def nearest(path: Path) -> list[np.ndarray]:
    """The frame nearest to every tick, from decoding all of them."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    times = np.array([time_s for time_s, _ in frames])
    times -= times[0]
    middles = (times[1:] + times[:-1]) / 2 - 1e-6  # of two equally near frames the later one
    ticks = np.arange(int(times[-1] * 24 + 0.499) + 1) / 24
    return [frames[at][1] for at in np.searchsorted(middles, ticks, side="right")]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("codec", CODECS)
def test_frames_equal_those_of_full_decoding(tmp_path: Path, rate: str, codec: str) -> None:
    path = video(tmp_path / "video.mp4", RATES[rate], CODECS[codec])
    want = nearest(path)
    assert len(want) >= 60
    got = {number: frame.rgb for number, frame, _ in video_frames(path, SourceLimits())}
    assert list(got) == list(range(len(want)))
    assert all(np.array_equal(got[number], one) for number, one in enumerate(want))
    window = np.zeros(50, bool)
    window[[7, *range(23, 31), 49]] = True
    part = {number: frame.rgb for number, frame, _ in video_frames(path, SourceLimits(), wanted=window)}
    assert list(part) == list(np.flatnonzero(window))
    assert all(np.array_equal(one, want[number]) for number, one in part.items())


@pytest.mark.parametrize(("rate", "most"), [("60 fps", 0.8), ("30 fps", 0.95)])
def test_unwanted_frames_are_not_decoded(tmp_path: Path, rate: str, most: float) -> None:
    path = video(tmp_path / "video.mp4", RATES[rate], CODECS["closed"])

    def counts(wanted: np.ndarray | None) -> tuple[int, int]:
        with av.open(str(path)) as container:
            found = list(decoded_frames(container, container.streams.video[0], wanted))
        return len(found), len(found) + sum(skipped for _, skipped in found)

    decoded, total = counts(None)
    nothing, _ = counts(np.zeros(72, bool))
    assert total == len(RATES[rate])
    assert nothing < decoded < most * total


@pytest.mark.parametrize(
    ("codec", "name", "log_lines"),
    [
        ("closed", "video.mp4", 0),
        ("closed", "video.mkv", 0),
        ("closed", "video.ts", 0),
        ("open", "video.mp4", 0),
        ("refreshed", "video.mp4", 1),
    ],
)
def test_gops_without_wanted_frames_are_skipped(
    tmp_path: Path, codec: str, name: str, log_lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    refreshed = {"intra-refresh": "1", "bframes": "0", "keyint": "40"}
    path = video(tmp_path / name, [n * 40 for n in range(400)], CODECS.get(codec, refreshed))
    want = nearest(path)
    wanted = np.zeros(310, bool)
    wanted[[3, *range(150, 155), 309]] = True
    with caplog.at_level("INFO"):
        got = {number: frame.rgb for number, frame, _ in video_frames(path, SourceLimits(), wanted=wanted)}
    assert list(got) == list(np.flatnonzero(wanted))
    assert all(np.array_equal(one, want[number]) for number, one in got.items())
    assert len(caplog.records) == log_lines
    if not log_lines:
        with av.open(str(path)) as container:
            assert sum(1 for _ in decoded_frames(container, container.streams.video[0], wanted)) < 200
