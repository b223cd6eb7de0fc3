"""Media files in and out at constant memory: an MP4 writer (H.264 + AAC) and readers of sound and pictures.

Enters: uint8 RGB frames and 24 kHz mono PCM16, or a path. Leaves: one MP4 file, or blocks of samples and arrays.
"""

import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.error
import numpy as np
import numpy.typing as npt

from lpm_model.config import AUDIO_RATE, VIDEO_FPS

Frames = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.int16]

FRAGMENTED = "frag_keyframe+delay_moov+default_base_moof+global_sidx"
"""One table of all samples would grow in memory; a fragment carries its own, and only its place is remembered."""
MAX_PICTURE_BYTES = 40_000_000
"""Largest picture file that is opened."""
MAX_PICTURE_PX = 50_000_000
"""Most pixels of a picture that are decoded: beyond it, decoding alone takes gigabytes."""

log = logging.getLogger(__name__)


class Mp4Writer:
    """Writes frames and sound into one MP4 as they come; the file appears under its name only when all went well.

    Use it as a context manager. Memory does not grow with the length of the video.
    """

    def __init__(
        self, path: Path, *, height_px: int, width_px: int, crf: int = 18, fps: int = VIDEO_FPS,
        keep_interrupted: bool = False,
    ) -> None:  # fmt: skip
        """Open the file.

        Args:
            path: where the MP4 goes; its folder is made.
            height_px: rows of every frame; H.264 wants it even.
            width_px: columns of every frame, even.
            crf: H.264 quality, lower is better.
            fps: frames a second.
            keep_interrupted: after Ctrl-C the file holds what was written until then; else it goes.

        Raises:
            ValueError: the sides are odd, or nothing can be written there.
        """
        if height_px % 2 or width_px % 2:
            raise ValueError(f"frames of {width_px}x{height_px} px do not fit H.264: make both sides even")
        self._path, self._partial = path, path.with_name(f".{path.stem}.partial.mp4")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch()
        except OSError as error:
            raise ValueError(f"{path} cannot be written ({error.strerror}): choose another place") from error
        self._keep_interrupted = keep_interrupted
        self._shape = (height_px, width_px, 3)
        self._container: Any = av.open(str(self._partial), "w", options={"movflags": FRAGMENTED})
        self._video: Any = self._container.add_stream("libx264", rate=fps)
        self._video.width, self._video.height, self._video.pix_fmt = width_px, height_px, "yuv420p"
        self._video.options = {"preset": "veryfast", "crf": str(crf)}
        self._audio: Any = self._container.add_stream("aac", rate=AUDIO_RATE, layout="mono")
        self.frames_written = 0
        self.samples_written = 0

    def write(self, frames: Frames, samples: Samples) -> None:
        """Append.

        Args:
            frames: uint8 [T, H, W, 3] RGB.
            samples: int16 [n], normally 1000 a frame.
        """
        for picture in frames:
            assert picture.shape == self._shape, f"frame {picture.shape} in a {self._shape} video"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = self.frames_written
            self.frames_written += 1
            self._container.mux(self._video.encode(frame))
        if samples.size:
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="s16", layout="mono")
            sound.sample_rate, sound.pts = AUDIO_RATE, self.samples_written
            sound.time_base = Fraction(1, AUDIO_RATE)
            self.samples_written += samples.size
            self._container.mux(self._audio.encode(sound))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wanted = self._keep_interrupted and kind is KeyboardInterrupt and self.frames_written > 0
        if kind is None or wanted:
            self._container.mux(self._video.encode(None))
            self._container.mux(self._audio.encode(None))
            self._container.close()
            os.replace(self._partial, self._path)
            return
        self._container.close()
        self._partial.unlink(missing_ok=True)


class SoundReader:
    """Reads any sound file as 24 kHz mono PCM16, piece by piece; past its end it gives silence."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            ValueError: the file is missing, is not media, or carries no sound.
        """
        if not path.is_file():
            raise ValueError(f"{path} does not exist: give the path of a sound file")
        try:
            self._container: Any = av.open(str(path))
        except (av.error.FFmpegError, OSError) as error:
            raise ValueError(f"{path} is not a readable sound file: convert it to WAV") from error
        if not self._container.streams.audio:
            self._container.close()
            raise ValueError(f"{path} carries no sound: give a file with an audio track")
        stream = self._container.streams.audio[0]
        seconds = stream.duration * stream.time_base if stream.duration else 0
        self.expected_samples = round(float(seconds) * AUDIO_RATE)
        self._path, self._blocks = path, self._decode()
        self._buffer: Samples = np.zeros(0, np.int16)
        self.exhausted = False

    def _decode(self) -> Iterator[Samples]:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=AUDIO_RATE)
        try:
            for frame in self._container.decode(audio=0):
                for piece in resampler.resample(frame):
                    yield piece.to_ndarray()[0]
            for piece in resampler.resample(None):
                yield piece.to_ndarray()[0]
        except av.error.FFmpegError as error:
            raise ValueError(f"{self._path} breaks off while decoding ({error}): repair or convert it") from error
        finally:
            self._container.close()

    def read(self, count: int) -> tuple[Samples, int]:
        """Take the next samples.

        Args:
            count: how many.

        Returns:
            int16 [count], zeros past the end of the file, and how many of them came from the file.
        """
        pieces, have = [self._buffer], self._buffer.size
        while have < count and not self.exhausted:
            piece = next(self._blocks, None)
            if piece is None:
                self.exhausted = True
            else:
                pieces.append(piece)
                have += piece.size
        joined = np.concatenate(pieces)
        self._buffer = joined[count:]
        true = min(count, joined.size)
        return np.pad(joined[:true], (0, count - true)), true

    def everything(self) -> Samples:
        """All samples that are left, int16 [n]."""
        self._buffer, rest = np.zeros(0, np.int16), self._buffer
        self.exhausted = True
        return np.concatenate([rest, *self._blocks])

    def close(self) -> None:
        self._container.close()


def read_picture(path: Path, size_px: int) -> Frames:
    """Read a picture, cut its centre square and scale it.

    Args:
        path: PNG, JPEG or anything else that FFmpeg reads.
        size_px: side of the square that comes back.

    Returns:
        uint8 [size_px, size_px, 3] RGB.

    Raises:
        ValueError: the file is missing, too large or not a picture.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the path of a picture")
    if path.stat().st_size > MAX_PICTURE_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: scale it below {MAX_PICTURE_BYTES} bytes")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} is not a picture: give a PNG or JPEG")
            stream = container.streams.video[0]
            if stream.codec_context.width * stream.codec_context.height > MAX_PICTURE_PX:
                size = f"{stream.codec_context.width}x{stream.codec_context.height}"
                raise ValueError(f"{path} has {size} px: scale it below {MAX_PICTURE_PX // 1_000_000} megapixels")
            picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError, StopIteration) as error:
        raise ValueError(f"{path} is not a readable picture ({error}): give a PNG or JPEG") from error
    return square(picture, size_px)


def square(picture: Frames, size_px: int) -> Frames:
    """Cut the centre square of a uint8 [H, W, 3] picture and scale it to uint8 [size_px, size_px, 3]."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(
            f"a character image is uint8 [H, W, 3], not {picture.dtype} {picture.shape}: convert it to RGB"
        )
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    cut = np.ascontiguousarray(picture[top : top + side, left : left + side])
    if side == size_px:
        return cut
    frame = av.VideoFrame.from_ndarray(cut, format="rgb24")
    scaled: Frames = frame.reformat(width=size_px, height=size_px, interpolation="AREA").to_ndarray(format="rgb24")
    return scaled
