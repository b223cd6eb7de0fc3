"""Decode a source onto the platform's clock: 24 frames a second by time stamp, 24 kHz mono sound from the same zero."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from components.curate.config import SourceLimits
from components.curate.video.frame import Picture, Scalers
from components.curate.video.packets import TIE_S, LeapFailed, decoded
from components.curate.video.probe import SourceRejected, open_media
from components.runtime.guarded_worker import alarm
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS

log = logging.getLogger(__name__)

T = TypeVar("T")

_GAP_SAMPLES = AUDIO_RATE // 20
"""Sound whose time stamps jump by more than this (50 ms) is moved; less is the encoder's rounding."""


class Stopwatch:
    """Counts the seconds that a decoder takes and refuses one that is far slower than what it plays.

    Args:
        file: name for the refusal.
        stall_s: longest wait for one picture.
        slowness: seconds of decoding allowed for each second that is shown, beside `stall_s` at the start.
    """

    def __init__(self, file: str, stall_s: float, slowness: float) -> None:
        self._file, self._stall_s, self._slowness = file, stall_s, slowness
        self._taken_s = 0.0

    def next(self, items: Iterator[T], shown_s: float) -> T | None:
        """The next item, None at the end.

        Raises:
            SourceRejected: decoding is too slow for the seconds shown so far.
        """
        started = time.monotonic()
        with alarm(self._stall_s):
            item = next(items, None)
        self._taken_s += time.monotonic() - started
        if self._taken_s > self._stall_s + self._slowness * shown_s:
            detail = f"decoding took {self._taken_s:.1f} s for {shown_s:.1f} s of video"
            raise SourceRejected(self._file, "too_slow", detail)
        return item


def video_frames(
    path: Path, limits: SourceLimits, *, reduced: bool = False, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, Picture, bool]]:
    """Yield (frame number, picture, is new) at 24 fps, streaming.

    Each output frame is the source picture nearest in time (of two, the later), so variable and odd rates keep their
    speed. "is new" is False where a slow source's picture is shown again. Only what is asked for is converted, and
    what is neither asked for nor needed for other pictures is not decoded.

    Args:
        path: the file.
        limits: what it may be.
        reduced: halve large pictures (see `picture.reduction`): all that looks at them has less to do.
        wanted: frames to yield [frames], none beyond; None = all.

    Raises:
        SourceRejected: damaged data, decoding without end, or a video longer than its header and the limits allow.
    """
    limit = int(limits.max_duration_s * VIDEO_FPS) + VIDEO_FPS
    scalers = Scalers()
    shown = 0
    for until_s, frame in _held(_Asked(path, limits, wanted)):
        picture, new = scalers.picture(frame, reduced), True
        while shown / VIDEO_FPS < until_s - TIE_S:
            if wanted is not None and shown >= len(wanted):
                return
            if wanted is None or wanted[shown]:
                yield shown, picture, new
                new = False
            shown += 1
            if shown > limit:
                raise SourceRejected(path.name, "too_long", f"more than {limits.max_duration_s:g} s of pictures")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `video_frames` was asked for."""

    path: Path
    limits: SourceLimits
    wanted: NDArray[np.bool_] | None


def _held(asked: _Asked) -> Iterator[tuple[float, Any]]:
    """(seconds since the first picture up to which it is shown, decoded frame) in order."""
    previous: tuple[float, Any] | None = None
    for time_s, frame in _pictures(asked):
        if previous is not None:
            if asked.wanted is None and time_s - previous[0] > asked.limits.max_hold_s:
                detail = f"one picture stands for {time_s - previous[0]:.0f} s, limit {asked.limits.max_hold_s:g}"
                raise SourceRejected(asked.path.name, "standing_picture", detail)
            yield (previous[0] + time_s) / 2, previous[1]
        previous = (time_s, frame)
    if previous is not None:
        yield previous[0] + 0.499 / VIDEO_FPS, previous[1]


def _pictures(asked: _Asked) -> Iterator[tuple[float, Any]]:
    """(seconds since the first picture, decoded frame) in order; counts damaged pictures."""
    import av

    count = damaged = 0
    zero: float | None = None
    last_s = -1.0
    watch = Stopwatch(asked.path.name, asked.limits.max_stall_s, asked.limits.max_slowness)
    frames = _frames(asked)
    try:
        while (found := watch.next(frames, last_s)) is not None:
            frame, left_out = found
            count += 1 + left_out
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
            asked.path.name, "corrupt", f"decoding stopped after {count} pictures ({error})"
        ) from error
    if count == 0:
        raise SourceRejected(asked.path.name, "corrupt", "no picture could be decoded")
    if damaged > asked.limits.max_corrupt_ratio * count:
        raise SourceRejected(asked.path.name, "corrupt", f"{damaged} of {count} pictures are damaged")


def _frames(asked: _Asked) -> Iterator[tuple[Any, int]]:
    """`packets.decoded` of a file, from the start again where that has to do without leaps."""
    for leaps in (True, False):
        with open_media(asked.path, asked.limits.max_stall_s) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # one worker a core already: more threads would only add delay
            try:
                yield from decoded(container, stream, asked.wanted, leaps)
                return
            except LeapFailed:
                log.info("%s: no key picture to start from, so all is decoded again from the start", asked.path.name)


def audio_track(path: Path, frames: int, limits: SourceLimits) -> NDArray[np.int16]:
    """The sound as int16 [frames * 1000] at 24 kHz mono, starting with video frame 0.

    Gaps and late starts become silence by time stamp. A file without sound gives silence.

    Raises:
        SourceRejected: the sound cannot be decoded, or not in reasonable time.
    """
    import av

    track = np.zeros(frames * SAMPLES_PER_FRAME, np.int16)
    with open_media(path, limits.max_stall_s) as container:
        if not container.streams.audio:
            return track
        zero_s = _video_start_s(container)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=AUDIO_RATE)
        cursor: int | None = None
        watch = Stopwatch(path.name, limits.max_stall_s, limits.max_slowness)
        pieces = container.decode(container.streams.audio[0])
        shown_s = 0.0
        try:
            while (frame := watch.next(pieces, shown_s)) is not None:
                shown_s += frame.samples / frame.sample_rate
                at = round(((frame.time or 0.0) - zero_s) * AUDIO_RATE)
                # The resampler holds some samples back, so only a clear jump is a gap in the recording.
                if cursor is None or abs(at - cursor) > _GAP_SAMPLES:
                    cursor = at
                for piece in resampler.resample(frame):
                    cursor = _place(track, cursor, piece.to_ndarray().reshape(-1))
            for piece in resampler.resample(None):
                _place(track, cursor or 0, piece.to_ndarray().reshape(-1))
        except SourceRejected:
            raise
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceRejected(
                path.name, "corrupt_audio", f"the sound cannot be decoded: is the file whole? ({error})"
            ) from error
    return track


def _video_start_s(container: Any) -> float:
    stream = container.streams.video[0]
    return float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0


def _place(track: NDArray[np.int16], at: int, samples: NDArray[np.int16]) -> int:
    """Write samples at a position, cut to the track; returns the position after them."""
    start, end = max(at, 0), min(at + len(samples), len(track))
    if end > start:
        track[start:end] = samples[start - at : end - at]
    return at + len(samples)
