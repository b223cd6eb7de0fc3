"""Read a source file's header and reject files that cannot or should not be decoded."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.curate.config import SourceLimits
from components.runtime.guarded_worker import alarm

# Only ordinary containers: a playlist or a concat script posing as a video could name other files of this machine.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv"


class SourceRejected(ValueError):
    """A source that cannot be used, with a machine-readable reason."""

    def __init__(self, file: str, reason: str, detail: str) -> None:
        super().__init__(f"{file}: {reason}: {detail}")
        self.file, self.reason, self.detail = file, reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.reason, self.detail)


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A source's header."""

    width_px: int
    """Frame width after rotation (px)."""
    height_px: int
    """Frame height after rotation (px)."""
    fps: float
    """Average frame rate (frames/s)."""
    duration_s: float
    """Length of the video (s)."""
    has_audio: bool
    """Whether there is an audio track."""
    video_bits_per_s: float
    """Bit rate of the file, video and audio (bit/s)."""


@contextlib.contextmanager
def open_media(path: Path, stall_s: float) -> Iterator[Any]:
    """Open a local file with PyAV; no other protocol is ever used, whatever the file references.

    Args:
        path: the file.
        stall_s: longest wait for its header (s); a worker process that takes longer is killed.

    Raises:
        SourceRejected: the file is missing, empty, or no video container.
    """
    import av

    if not path.is_file():
        raise SourceRejected(path.name, "missing", "no such file")
    if path.stat().st_size == 0:
        raise SourceRejected(path.name, "empty", "the file has no bytes")
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        with alarm(stall_s):
            container = av.open(os.fspath(path.resolve()), options=options, metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise SourceRejected(path.name, "corrupt", f"cannot be opened as video ({error})") from error
    with container:
        yield container


def probe(path: Path, limits: SourceLimits) -> Probe:
    """Read the header of one file and check it against the limits.

    Raises:
        SourceRejected: what is wrong, as a reason code with the numbers.
    """
    if path.is_file() and path.stat().st_size > limits.max_bytes:
        raise SourceRejected(path.name, "too_large", f"{path.stat().st_size} bytes, limit {limits.max_bytes}")
    with open_media(path, limits.max_stall_s) as container:
        if not container.streams.video:
            raise SourceRejected(path.name, "no_video", "no video stream")
        stream = container.streams.video[0]
        duration_s = _duration_s(container, stream)
        found = Probe(
            width_px=int(stream.codec_context.width),
            height_px=int(stream.codec_context.height),
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            duration_s=duration_s,
            has_audio=bool(container.streams.audio),
            video_bits_per_s=path.stat().st_size * 8 / duration_s if duration_s else 0.0,
        )
        _check(path, found, limits)
        return _with_rotation(path, container, found, limits)


def _with_rotation(path: Path, container: Any, found: Probe, limits: SourceLimits) -> Probe:
    """Return the header corrected by the first frame: its true size, after the rotation metadata."""
    import av

    try:
        with alarm(limits.max_stall_s):
            frame = next(container.decode(video=0), None)
    except (av.error.FFmpegError, ValueError, OSError, MemoryError) as error:
        raise SourceRejected(path.name, "corrupt", f"the first frame cannot be decoded ({error})") from error
    if frame is None:
        raise SourceRejected(path.name, "corrupt", "no frame could be decoded")
    sideways = round(frame.rotation / 90) % 2 == 1
    width_px, height_px = (frame.height, frame.width) if sideways else (frame.width, frame.height)
    found = dataclasses.replace(found, width_px=width_px, height_px=height_px)
    _check(path, found, limits)
    return found


def _duration_s(container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else 0.0


def _check(path: Path, found: Probe, limits: SourceLimits) -> None:
    if found.width_px <= 0 or found.height_px <= 0:
        raise SourceRejected(path.name, "corrupt", "the header gives no frame size")
    if max(found.width_px, found.height_px) > limits.max_side_px:
        size = f"{found.width_px}x{found.height_px}"
        raise SourceRejected(path.name, "too_big", f"{size} px, limit {limits.max_side_px}")
    if min(found.width_px, found.height_px) < limits.min_side_px:
        size = f"{found.width_px}x{found.height_px}"
        raise SourceRejected(path.name, "too_small", f"{size} px, at least {limits.min_side_px}")
    if found.duration_s > limits.max_duration_s:
        raise SourceRejected(path.name, "too_long", f"{found.duration_s:.1f} s, limit {limits.max_duration_s:g}")
    if 0 < found.duration_s < limits.min_duration_s:
        raise SourceRejected(path.name, "too_short", f"{found.duration_s:.2f} s, at least {limits.min_duration_s:g}")
    if found.fps > limits.max_fps:
        raise SourceRejected(path.name, "too_fast", f"{found.fps:.1f} fps, limit {limits.max_fps:g}")
