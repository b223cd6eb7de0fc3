"""H.264 and AAC encoder set-up shared by MP4 files (`mp4.py`) and live fragments (`fragments.py`)."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from lpm_model.config import AUDIO_RATE

CLOCK = Fraction(1, AUDIO_RATE)
"""Time base of one audio sample."""


def add_h264(container: Any, *, width_px: int, height_px: int, fps: int, options: dict[str, str]) -> Any:
    """Add an H.264 stream (yuv420p, both sides even) to an output container and return it."""
    stream = container.add_stream("libx264", rate=fps, options=options)
    stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
    return stream


def add_aac(container: Any, *, bits_per_s: int | None = None) -> Any:
    """Add a mono 24 kHz AAC stream to an output container and return it; None leaves the bit rate to the encoder."""
    stream = container.add_stream("aac", rate=AUDIO_RATE, layout="mono")
    if bits_per_s is not None:
        stream.bit_rate = bits_per_s
    return stream


def rgb_frame(frame: npt.NDArray[np.uint8]) -> av.VideoFrame:
    """Wrap a uint8 [H, W, 3] RGB array as a frame for an encoder."""
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
