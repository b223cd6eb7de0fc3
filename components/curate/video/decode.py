"""Decode a source onto the platform's clock: 24 frames a second by time stamp, 24 kHz mono audio from the same zero."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from components.curate.config import SourceLimits
from components.curate.video.frame import DecodedFrame, Scalers
from components.curate.video.packets import TIE_S, GopSkipFailed, decoded_frames
from components.curate.video.probe import SourceRejected, open_media
from components.runtime.guarded_worker import alarm
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS

log = logging.getLogger(__name__)

T = TypeVar("T")

_GAP_SAMPLES = AUDIO_RATE // 20
"""Audio is placed by its time stamp when that jumps by more than this (50 ms); less is the encoder's rounding."""


class DecodeTimer:
    """Limits decoding time: rejects a source that decodes far slower than it plays.

    Args:
        file: name for the error.
        stall_s: longest wait for one frame (s).
        slowness: seconds of decoding allowed per second of video, in addition to `stall_s` at the start.
    """

    def __init__(self, file: str, stall_s: float, slowness: float) -> None:
        self._file, self._stall_s, self._slowness = file, stall_s, slowness
        self._taken_s = 0.0

    def next(self, items: Iterator[T], played_s: float) -> T | None:
        """Return the next item, None at the end.

        Raises:
            SourceRejected: decoding is too slow for the seconds decoded so far.
        """
        started = time.monotonic()
        with alarm(self._stall_s):
            item = next(items, None)
        self._taken_s += time.monotonic() - started
        if self._taken_s > self._stall_s + self._slowness * played_s:
            detail = f"decoding took {self._taken_s:.1f} s for {played_s:.1f} s of video"
            raise SourceRejected(self._file, "too_slow", detail)
        return item


def video_frames(
    path: Path, limits: SourceLimits, *, reduced: bool = False, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, DecodedFrame, bool]]:
    """Yield (frame number, frame, is new) at 24 fps, streaming.

    Each output frame is the source frame nearest in time (of two, the later one), so variable and odd frame rates keep
    their speed. "is new" is False for a duplicate, as in sources below 24 fps. Frames that are neither wanted nor
    referenced by others are not decoded.

    Args:
        path: the file.
        limits: limits of a source.
        reduced: halve large frames (see `frame.reduction`), which makes their analysis cheaper.
        wanted: which frames to yield, bool [frames]; None = all.

    Raises:
        SourceRejected: damaged data, endless decoding, or a video longer than its header and the limits allow.
    """
    limit = int(limits.max_duration_s * VIDEO_FPS) + VIDEO_FPS
    scalers = Scalers()
    number = 0
    for until_s, raw in _frames_with_end(_Request(path, limits, wanted)):
        frame, new = scalers.decoded(raw, reduced), True
        while number / VIDEO_FPS < until_s - TIE_S:
            if wanted is not None and number >= len(wanted):
                return
            if wanted is None or wanted[number]:
                yield number, frame, new
                new = False
            number += 1
            if number > limit:
                raise SourceRejected(path.name, "too_long", f"more than {limits.max_duration_s:g} s of frames")


@dataclass(frozen=True, slots=True)
class _Request:
    """Arguments of `video_frames`."""

    path: Path
    limits: SourceLimits
    wanted: NDArray[np.bool_] | None


def _frames_with_end(request: _Request) -> Iterator[tuple[float, Any]]:
    """Yield (end of display in seconds from the first frame, decoder's frame) in order."""
    previous: tuple[float, Any] | None = None
    for time_s, frame in _timed_frames(request):
        if previous is not None:
            if request.wanted is None and time_s - previous[0] > request.limits.max_hold_s:
                detail = f"one frame is displayed for {time_s - previous[0]:.0f} s, limit {request.limits.max_hold_s:g}"
                raise SourceRejected(request.path.name, "standing_picture", detail)
            yield (previous[0] + time_s) / 2, previous[1]
        previous = (time_s, frame)
    if previous is not None:
        yield previous[0] + 0.499 / VIDEO_FPS, previous[1]


def _timed_frames(request: _Request) -> Iterator[tuple[float, Any]]:
    """Yield (time in seconds from the first frame, decoder's frame) in order; too many damaged frames are an error."""
    import av

    count = damaged = 0
    zero: float | None = None
    last_s = -1.0
    timer = DecodeTimer(request.path.name, request.limits.max_stall_s, request.limits.max_slowness)
    frames = _frames_with_fallback(request)
    try:
        while (found := timer.next(frames, last_s)) is not None:
            frame, skipped = found
            count += 1 + skipped
            damaged += bool(frame.is_corrupt)
            time_s = frame.time if frame.time is not None else last_s + 1 / VIDEO_FPS + (zero or 0.0)
            zero = time_s if zero is None else zero
            if time_s - zero > last_s:
                last_s = time_s - zero
                yield last_s, frame
    except SourceRejected:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceRejected(
            request.path.name, "corrupt", f"decoding stopped after {count} frames ({error})"
        ) from error
    if count == 0:
        raise SourceRejected(request.path.name, "corrupt", "no frame could be decoded")
    if damaged > request.limits.max_corrupt_ratio * count:
        raise SourceRejected(request.path.name, "corrupt", f"{damaged} of {count} frames are damaged")


def _frames_with_fallback(request: _Request) -> Iterator[tuple[Any, int]]:
    """Yield the frames of `packets.decoded_frames`; decode from the start without GOP skipping where that fails."""
    for skip_gops in (True, False):
        with open_media(request.path, request.limits.max_stall_s) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # one worker per core already: more threads would only add latency
            try:
                yield from decoded_frames(container, stream, request.wanted, skip_gops)
                return
            except GopSkipFailed:
                log.info("%s: cannot start from a keyframe, decoding again from the start", request.path.name)


def audio_track(path: Path, frames: int, limits: SourceLimits) -> NDArray[np.int16]:
    """Decode the audio as int16 [frames * 1000] at 24 kHz mono, starting with video frame 0.

    Gaps and late starts become silence by time stamp. A file without audio gives silence.

    Raises:
        SourceRejected: the audio cannot be decoded, or not in reasonable time.
    """
    import av

    track = np.zeros(frames * SAMPLES_PER_FRAME, np.int16)
    with open_media(path, limits.max_stall_s) as container:
        if not container.streams.audio:
            return track
        zero_s = _video_start_s(container)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=AUDIO_RATE)
        cursor: int | None = None
        timer = DecodeTimer(path.name, limits.max_stall_s, limits.max_slowness)
        packets = container.decode(container.streams.audio[0])
        played_s = 0.0
        try:
            while (frame := timer.next(packets, played_s)) is not None:
                played_s += frame.samples / frame.sample_rate
                at = round(((frame.time or 0.0) - zero_s) * AUDIO_RATE)
                # The resampler delays some samples, so only a clear jump is a gap in the recording.
                if cursor is None or abs(at - cursor) > _GAP_SAMPLES:
                    cursor = at
                for resampled in resampler.resample(frame):
                    cursor = _write_samples(track, cursor, resampled.to_ndarray().reshape(-1))
            for resampled in resampler.resample(None):
                _write_samples(track, cursor or 0, resampled.to_ndarray().reshape(-1))
        except SourceRejected:
            raise
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceRejected(
                path.name, "corrupt_audio", f"the audio cannot be decoded: is the file whole? ({error})"
            ) from error
    return track


def _video_start_s(container: Any) -> float:
    stream = container.streams.video[0]
    return float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0


def _write_samples(track: NDArray[np.int16], at: int, samples: NDArray[np.int16]) -> int:
    """Write samples at a position, clipped to the track; return the position after them."""
    start, end = max(at, 0), min(at + len(samples), len(track))
    if end > start:
        track[start:end] = samples[start - at : end - at]
    return at + len(samples)
