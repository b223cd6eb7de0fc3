"""Writing one MP4 with picture and sound on a common zero."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS

_AAC_FRAME = 1024
_AAC_BITS_PER_S = 96_000


def write_mp4(path: Path, video: NDArray[np.uint8], pcm: NDArray[np.int16], crf: int) -> None:
    """Write H.264 + AAC at 24 fps and 24 kHz mono; appears under its name only when complete.

    Args:
        path: the file, ending in .mp4.
        video: uint8 [T, H, W, 3] RGB; H and W even.
        pcm: int16 [1000 T] sound.
        crf: quality of H.264.

    Raises:
        ValueError: picture and sound do not last equally long.
    """
    import av

    frames, height, width = video.shape[:3]
    if len(pcm) != frames * SAMPLES_PER_FRAME:
        raise ValueError(f"{len(pcm)} samples for {frames} frames: give {SAMPLES_PER_FRAME} samples a frame")
    partial = path.with_name(f".{path.stem}.partial.mp4")
    with av.open(str(partial), "w", options={"movflags": "+faststart"}) as container:
        # No B-frames: the first picture is decoded and shown at time zero.
        picture = container.add_stream(
            "libx264",
            rate=VIDEO_FPS,
            options={"crf": str(crf), "preset": "veryfast", "bf": "0", "g": "48", "threads": "1"},
        )
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        picture.time_base = Fraction(1, VIDEO_FPS)
        sound = container.add_stream("aac", rate=AUDIO_RATE, layout="mono")
        sound.bit_rate = _AAC_BITS_PER_S
        pending = _sound_frames(pcm)
        heard = 0
        for index, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, VIDEO_FPS)
            container.mux(picture.encode(frame))
            while heard < (index + 1) * SAMPLES_PER_FRAME and (block := next(pending, None)) is not None:
                container.mux(sound.encode(block))
                heard += _AAC_FRAME
        container.mux(picture.encode(None))
        for block in pending:
            container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    os.replace(partial, path)


def _sound_frames(pcm: NDArray[np.int16]) -> Iterator[Any]:
    import av

    wave = pcm.astype(np.float32) / 32768.0
    for start in range(0, len(wave), _AAC_FRAME):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + _AAC_FRAME], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE, start, Fraction(1, AUDIO_RATE)
        yield frame
