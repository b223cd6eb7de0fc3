"""Decode a source onto the platform's clock: 24 frames a second by time stamp, 24 kHz mono sound from the same zero."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.config import SourceLimits
from components.curate.probe import SourceRejected, open_media
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS

_GAP_SAMPLES = AUDIO_RATE // 20
"""Sound whose time stamps jump by more than this (50 ms) is moved; less is the encoder's rounding."""


def video_frames(path: Path, limits: SourceLimits) -> Iterator[tuple[int, NDArray[np.uint8], bool]]:
    """Yield (frame number, RGB picture [H, W, 3], is new) at 24 fps, streaming.

    Each output frame is the source picture nearest in time, so variable and odd frame rates keep their speed.
    "is new" is False where a slow source's picture is shown again.

    Raises:
        SourceRejected: damaged data, or a video longer than its header and the limits allow.
    """
    limit = int(limits.max_duration_s * VIDEO_FPS) + VIDEO_FPS
    shown = 0
    previous: tuple[float, NDArray[np.uint8]] | None = None
    for time_s, picture in _pictures(path, limits):
        if previous is None:
            previous = (time_s, picture)
            continue
        middle_s = (previous[0] + time_s) / 2
        new = True
        while shown / VIDEO_FPS < middle_s:
            yield shown, previous[1], new
            shown, new = shown + 1, False
        if shown > limit:
            raise SourceRejected(path.name, "too_long", f"more than {limits.max_duration_s:g} s of pictures")
        previous = (time_s, picture)
    new = True
    while previous is not None and shown / VIDEO_FPS < previous[0] + 0.499 / VIDEO_FPS:
        yield shown, previous[1], new
        shown, new = shown + 1, False


def _pictures(path: Path, limits: SourceLimits) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """(seconds since the first picture, RGB picture) in order; counts damaged pictures."""
    import av

    count = damaged = 0
    zero: float | None = None
    last_s = -1.0
    converter = av.video.reformatter.VideoReformatter()  # keeps its scaler; frame.to_ndarray would build one a frame
    with open_media(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # one worker a core already; frame threads would double them and add delay
        try:
            for frame in container.decode(stream):
                count += 1
                damaged += bool(frame.is_corrupt)
                time_s = frame.time if frame.time is not None else last_s + 1 / VIDEO_FPS + (zero or 0.0)
                zero = time_s if zero is None else zero
                if time_s - zero > last_s:
                    last_s = time_s - zero
                    yield last_s, _upright(frame, converter)
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceRejected(path.name, "corrupt", f"decoding stopped after {count} pictures ({error})") from error
    if count == 0:
        raise SourceRejected(path.name, "corrupt", "no picture could be decoded")
    if damaged > limits.max_corrupt_ratio * count:
        raise SourceRejected(path.name, "corrupt", f"{damaged} of {count} pictures are damaged")


def _upright(frame: Any, converter: Any) -> NDArray[np.uint8]:
    """RGB as shown: a phone's rotation flag is applied."""
    picture: NDArray[np.uint8] = converter.reformat(frame, format="rgb24").to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.rot90(picture, turns) if turns else picture


def audio_track(path: Path, frames: int) -> NDArray[np.int16]:
    """The sound as int16 [frames * 1000] at 24 kHz mono, starting with video frame 0.

    Gaps and late starts become silence by time stamp. A file without sound gives silence.

    Raises:
        SourceRejected: the sound cannot be decoded.
    """
    import av

    track = np.zeros(frames * SAMPLES_PER_FRAME, np.int16)
    with open_media(path) as container:
        if not container.streams.audio:
            return track
        zero_s = _video_start_s(container)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=AUDIO_RATE)
        cursor: int | None = None
        try:
            for frame in container.decode(container.streams.audio[0]):
                at = round(((frame.time or 0.0) - zero_s) * AUDIO_RATE)
                # The resampler holds some samples back, so only a clear jump is a gap in the recording.
                if cursor is None or abs(at - cursor) > _GAP_SAMPLES:
                    cursor = at
                for piece in resampler.resample(frame):
                    cursor = _place(track, cursor, piece.to_ndarray().reshape(-1))
            for piece in resampler.resample(None):
                _place(track, cursor or 0, piece.to_ndarray().reshape(-1))
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceRejected(path.name, "corrupt_audio", f"the sound cannot be decoded ({error})") from error
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
