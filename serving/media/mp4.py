"""Write an MP4 file (H.264 + AAC) and read audio files, both in constant memory.

Input: uint8 RGB frames and 24 kHz mono PCM16, or a path. Output: one MP4 file, or blocks of samples.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.error
import numpy as np
import numpy.typing as npt

from lpm_model.config import AUDIO_RATE, VIDEO_FPS
from serving.media.codecs import CLOCK, add_aac, add_h264, rgb_frame

Frames = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.int16]

FRAGMENTED = "frag_keyframe+delay_moov+default_base_moof+global_sidx"
"""A single sample table would grow in memory; each fragment carries its own, and only its position is retained."""
LOCAL_FILES_ONLY = {"protocol_whitelist": "file"}
"""FFmpeg options for every reader: a playlist or an address inside a file never opens a network connection."""


class Mp4Writer:
    """Writes frames and audio into one MP4 as they arrive; the file gets its final name only on success.

    Use it as a context manager. Memory does not grow with the length of the video.
    """

    def __init__(
        self, path: Path, *, height_px: int, width_px: int, crf: int = 18, fps: int = VIDEO_FPS,
        keep_interrupted: bool = False, movflags: str = FRAGMENTED, x264: Mapping[str, str] | None = None,
        audio_bits_per_s: int | None = None,
    ) -> None:  # fmt: skip
        """Open the file.

        Args:
            path: the MP4 to write; its folder is created.
            height_px: height of every frame; H.264 needs it even.
            width_px: width of every frame, even.
            crf: H.264 quality, lower is better.
            fps: frames per second.
            keep_interrupted: on Ctrl-C keep what has been written so far instead of deleting the file.
            movflags: flags of FFmpeg's MP4 muxer; the default bounds memory use.
            x264: further encoder options, such as {"bf": "0"}.
            audio_bits_per_s: bit rate of the AAC track; None leaves it to the encoder.

        Raises:
            ValueError: a side is odd, or the path cannot be written.
        """
        if height_px % 2 or width_px % 2:
            raise ValueError(f"frames of {width_px}x{height_px} px do not fit H.264: make both sides even")
        self._path, self._partial = path, path.with_name(f".{path.stem}.partial.mp4")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch()
        except OSError as error:
            raise ValueError(f"{path} cannot be written ({error.strerror}): choose another path") from error
        self._keep_interrupted = keep_interrupted
        self._shape = (height_px, width_px, 3)
        self._container: Any = av.open(str(self._partial), "w", options={"movflags": movflags})
        options = {"preset": "veryfast", "crf": str(crf), **(x264 or {})}
        self._video = add_h264(self._container, width_px=width_px, height_px=height_px, fps=fps, options=options)
        self._audio = add_aac(self._container, bits_per_s=audio_bits_per_s)
        self.frames_written = 0
        self.samples_written = 0

    def write(self, frames: Frames, samples: Samples) -> None:
        """Append frames and audio.

        Args:
            frames: uint8 [T, H, W, 3] RGB.
            samples: int16 [n], normally 1000 per frame.
        """
        for frame in frames:
            assert frame.shape == self._shape, f"frame {frame.shape} in a {self._shape} video"
            encodable = rgb_frame(frame)
            encodable.pts = self.frames_written
            self.frames_written += 1
            self._container.mux(self._video.encode(encodable))
        if samples.size:
            audio = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="s16", layout="mono")
            audio.sample_rate, audio.pts, audio.time_base = AUDIO_RATE, self.samples_written, CLOCK
            self.samples_written += samples.size
            self._container.mux(self._audio.encode(audio))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keep = self._keep_interrupted and kind is KeyboardInterrupt and self.frames_written > 0
        if kind is None or keep:
            self._container.mux(self._video.encode(None))
            self._container.mux(self._audio.encode(None))
            self._container.close()
            os.replace(self._partial, self._path)
            return
        self._container.close()
        self._partial.unlink(missing_ok=True)


class AudioReader:
    """Reads any local audio file as 24 kHz mono PCM16, block by block; returns silence past its end."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            ValueError: the file is missing, is not media, or has no audio track.
        """
        if not path.is_file():
            raise ValueError(f"{path} does not exist: give the path of an audio file")
        try:
            self._container: Any = av.open(str(path.resolve()), options=LOCAL_FILES_ONLY)
        except (av.error.FFmpegError, OSError) as error:
            raise ValueError(f"{path} is not a readable audio file: convert it to WAV") from error
        if not self._container.streams.audio:
            self._container.close()
            raise ValueError(f"{path} has no audio track: give a file with one")
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
                for block in resampler.resample(frame):
                    yield block.to_ndarray()[0]
            for block in resampler.resample(None):
                yield block.to_ndarray()[0]
        except av.error.FFmpegError as error:
            raise ValueError(f"{self._path} fails to decode ({error}): repair or convert it") from error
        finally:
            self._container.close()

    def read(self, count: int) -> tuple[Samples, int]:
        """Read the next samples.

        Args:
            count: number of samples.

        Returns:
            int16 [count], zero-padded past the end of the file, and how many of them came from the file.
        """
        blocks, have = [self._buffer], self._buffer.size
        while have < count and not self.exhausted:
            block = next(self._blocks, None)
            if block is None:
                self.exhausted = True
            else:
                blocks.append(block)
                have += block.size
        joined = np.concatenate(blocks)
        self._buffer = joined[count:]
        available = min(count, joined.size)
        return np.pad(joined[:available], (0, count - available)), available

    def read_all(self) -> Samples:
        """Read all remaining samples, int16 [n]."""
        self._buffer, rest = np.zeros(0, np.int16), self._buffer
        self.exhausted = True
        return np.concatenate([rest, *self._blocks])

    def close(self) -> None:
        self._container.close()
