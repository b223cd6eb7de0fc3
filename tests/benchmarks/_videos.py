"""Videos for the curation benchmark: real talking people at 30 fps, of any size and length, made once and cached."""

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

CACHE = Path(".work/benchmark-videos")
FPS = 30
_NOISE = 2.0
"""Standard deviation of the added grain (grey values): enlarged frames are too smooth to cost as much as a camera's."""


def talking_videos(seconds: float, height_px: int = 720, cache: Path = CACHE) -> list[Path]:
    """Return a 16:9 video of about this length and height for each packaged clip of a talking head with audio.

    Raises:
        ValueError: no real clip is available.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = [clip for clip in fetch_real_clips() if clip.stem in ("testMovie", "jwpIntro")]
    if not found:
        raise ValueError("the talking heads of psychopy are missing: check the connection to a package index")
    large = [_enlarged(clip, height_px, cache / f"{clip.stem}-{height_px}p.mp4") for clip in found]
    return [_looped(clip, seconds, cache) for clip in large]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Any]:
    """Write a container that is renamed to its path once it is complete."""
    partial = path.with_name(f".{path.name}")
    with av.open(str(partial), "w", format="mp4") as out:
        yield out
    partial.replace(path)


def _enlarged(clip: Path, height_px: int, path: Path) -> Path:
    """Encode the enlarged clip in H.264 with its audio."""
    if path.exists():
        return path
    grain = np.random.default_rng(0)
    with av.open(str(clip)) as given, _writing(path) as out:
        video = out.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "fast", "threads": "1"})
        video.width, video.height = height_px * 16 // 9, height_px
        video.pix_fmt = "yuv420p"
        audio = out.add_stream("aac", rate=48_000, layout="mono")
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000, frame_size=1024)
        written = 0
        for frame in given.decode(video=0):
            while written / FPS <= frame.time:
                large = _wide(frame.to_ndarray(format="rgb24"), height_px, grain)
                noisy = av.VideoFrame.from_ndarray(large, format="rgb24")
                noisy.pts, noisy.time_base = written, Fraction(1, FPS)
                out.mux(video.encode(noisy))
                written += 1
        out.mux(video.encode(None))
        given.seek(0)
        for frame in [*given.decode(audio=0), None]:
            for chunk in resampler.resample(frame):
                out.mux(audio.encode(chunk))
        out.mux(audio.encode(None))
    return path


def _wide(image: NDArray[np.uint8], height_px: int, grain: np.random.Generator) -> NDArray[np.uint8]:
    """Crop the middle of an image to 16:9, enlarge it and add grain."""
    height, width = image.shape[:2]
    crop_height = round(width * 9 / 16)
    top = (height - crop_height) // 3
    large = cv2.resize(image[top : top + crop_height], (height_px * 16 // 9, height_px), interpolation=cv2.INTER_CUBIC)
    noise = grain.standard_normal((*large.shape[:2], 1), np.float32) * _NOISE
    return np.clip(large + noise, 0, 255).astype(np.uint8)


def _looped(clip: Path, seconds: float, cache: Path) -> Path:
    """Repeat the clip's packets without encoding them again."""
    path = cache / f"{clip.stem}-{seconds:g}s.mp4"
    if path.exists():
        return path
    with av.open(str(clip)) as first, _writing(path) as out:
        length_s = Fraction(first.streams.video[0].frames, FPS)
        streams = [out.add_stream_from_template(stream) for stream in first.streams]
        for repeat in range(max(round(seconds / length_s), 1)):
            with av.open(str(clip)) as given:  # muxing consumes packets, so read them again
                for packet in given.demux():
                    inside = packet.dts is not None and 0 <= packet.pts * packet.time_base < length_s
                    if inside or (packet.stream.type == "video" and packet.dts is not None):
                        shift = round(repeat * length_s / packet.time_base)
                        packet.stream = streams[packet.stream.index]
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        out.mux(packet)
    return path
