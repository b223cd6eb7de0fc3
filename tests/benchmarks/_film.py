"""Films for the curation benchmark: real talking people at 30 fps, of any size and length, made once into a cache."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from components.performer.real_clips import fetch_real_clips

CACHE = Path(".work/benchmark-films")
FPS = 30
_NOISE = 2.0
"""Spread of the grain that is added (grey values): enlarged pictures are too smooth to cost what a camera's cost."""


def films(seconds: float, height_px: int = 720, cache: Path = CACHE) -> list[Path]:
    """One film of about so many seconds and of this height, 16:9, for each talking head with sound that packages carry.

    Raises:
        ValueError: no real clip can be had.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = [clip for clip in fetch_real_clips() if clip.stem in ("testMovie", "jwpIntro")]
    if not found:
        raise ValueError("the talking heads of psychopy are missing: check the connection to a package index")
    large = [_enlarged(clip, height_px, cache / f"{clip.stem}-{height_px}p.mp4") for clip in found]
    return [_looped(clip, seconds, cache) for clip in large]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Any]:
    """A container that takes its name when it is complete."""
    partial = path.with_name(f".{path.name}")
    with av.open(str(partial), "w", format="mp4") as out:
        yield out
    partial.replace(path)


def _enlarged(clip: Path, height_px: int, path: Path) -> Path:
    """The clip once, enlarged, in H.264 with its sound."""
    if path.exists():
        return path
    grain = np.random.default_rng(0)
    with av.open(str(clip)) as given, _writing(path) as out:
        picture = out.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "fast", "threads": "1"})
        picture.width, picture.height = height_px * 16 // 9, height_px
        picture.pix_fmt = "yuv420p"
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000, frame_size=1024)
        shown = 0
        for frame in given.decode(video=0):
            while shown / FPS <= frame.time:
                large = _wide(frame.to_ndarray(format="rgb24"), height_px, grain)
                noisy = av.VideoFrame.from_ndarray(large, format="rgb24")
                noisy.pts, noisy.time_base = shown, Fraction(1, FPS)
                out.mux(picture.encode(noisy))
                shown += 1
        out.mux(picture.encode(None))
        given.seek(0)
        for frame in [*given.decode(audio=0), None]:
            for piece in resampler.resample(frame):
                out.mux(sound.encode(piece))
        out.mux(sound.encode(None))
    return path


def _wide(picture: NDArray[np.uint8], height_px: int, grain: np.random.Generator) -> NDArray[np.uint8]:
    """The middle of a picture, 16:9, enlarged and with grain."""
    height, width = picture.shape[:2]
    part = round(width * 9 / 16)
    top = (height - part) // 3
    large = cv2.resize(picture[top : top + part], (height_px * 16 // 9, height_px), interpolation=cv2.INTER_CUBIC)
    noise = grain.standard_normal((*large.shape[:2], 1), np.float32) * _NOISE
    return np.clip(large + noise, 0, 255).astype(np.uint8)


def _looped(clip: Path, seconds: float, cache: Path) -> Path:
    """The clip's packets over and over, without encoding again."""
    path = cache / f"{clip.stem}-{seconds:g}s.mp4"
    if path.exists():
        return path
    with av.open(str(clip)) as first, _writing(path) as out:
        length_s = Fraction(first.streams.video[0].frames, FPS)
        streams = [out.add_stream_from_template(stream) for stream in first.streams]
        for turn in range(max(round(seconds / length_s), 1)):
            with av.open(str(clip)) as given:  # writing uses a packet up, so they are read anew
                for packet in given.demux():
                    inside = packet.dts is not None and 0 <= packet.pts * packet.time_base < length_s
                    if inside or (packet.stream.type == "video" and packet.dts is not None):
                        shift = round(turn * length_s / packet.time_base)
                        packet.stream = streams[packet.stream.index]
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        out.mux(packet)
    return path
