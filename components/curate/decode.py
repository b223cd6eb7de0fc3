"""Decode a source onto the platform's clock: 24 frames a second by time stamp, 24 kHz mono sound from the same zero."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from components.curate.config import SourceLimits
from components.curate.picture import Picture, Scalers
from components.curate.probe import SourceRejected, open_media
from components.worker import alarm
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS

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


def video_frames(path: Path, limits: SourceLimits, *, reduced: bool = False) -> Iterator[tuple[int, Picture, bool]]:
    """Yield (frame number, picture, is new) at 24 fps, streaming.

    Each output frame is the source picture nearest in time, so variable and odd frame rates keep their speed.
    "is new" is False where a slow source's picture is shown again. Only what is asked for is converted.

    Args:
        path: the file.
        limits: what it may be.
        reduced: halve large pictures (see `picture.reduction`): all that looks at them has less to do.

    Raises:
        SourceRejected: damaged data, decoding without end, or a video longer than its header and the limits allow.
    """
    limit = int(limits.max_duration_s * VIDEO_FPS) + VIDEO_FPS
    scalers = Scalers()
    shown = 0
    previous: tuple[float, Any] | None = None
    for time_s, frame in _pictures(path, limits):
        if previous is None:
            previous = (time_s, frame)
            continue
        if time_s - previous[0] > limits.max_hold_s:
            detail = f"one picture stands for {time_s - previous[0]:.0f} s, limit {limits.max_hold_s:g}"
            raise SourceRejected(path.name, "standing_picture", detail)
        middle_s = (previous[0] + time_s) / 2
        picture = None
        while shown / VIDEO_FPS < middle_s:
            new = picture is None
            picture = scalers.picture(previous[1], reduced) if picture is None else picture
            yield shown, picture, new
            shown += 1
            if shown > limit:
                raise SourceRejected(path.name, "too_long", f"more than {limits.max_duration_s:g} s of pictures")
        previous = (time_s, frame)
    picture = None
    while previous is not None and shown / VIDEO_FPS < previous[0] + 0.499 / VIDEO_FPS:
        new = picture is None
        picture = scalers.picture(previous[1], reduced) if picture is None else picture
        yield shown, picture, new
        shown += 1


def _pictures(path: Path, limits: SourceLimits) -> Iterator[tuple[float, Any]]:
    """(seconds since the first picture, decoded frame) in order; counts damaged pictures."""
    import av

    count = damaged = 0
    zero: float | None = None
    last_s = -1.0
    watch = Stopwatch(path.name, limits.max_stall_s, limits.max_slowness)
    with open_media(path, limits.max_stall_s) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # one worker a core already: more threads would only add delay
        frames = container.decode(stream)
        try:
            while (frame := watch.next(frames, last_s)) is not None:
                count += 1
                damaged += bool(frame.is_corrupt)
                time_s = frame.time if frame.time is not None else last_s + 1 / VIDEO_FPS + (zero or 0.0)
                zero = time_s if zero is None else zero
                if time_s - zero > last_s:
                    last_s = time_s - zero
                    yield last_s, frame
        except SourceRejected:
            raise
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceRejected(path.name, "corrupt", f"decoding stopped after {count} pictures ({error})") from error
    if count == 0:
        raise SourceRejected(path.name, "corrupt", "no picture could be decoded")
    if damaged > limits.max_corrupt_ratio * count:
        raise SourceRejected(path.name, "corrupt", f"{damaged} of {count} pictures are damaged")


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
