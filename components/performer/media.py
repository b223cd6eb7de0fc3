"""Writes one MP4 whose video and audio start at the same zero."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import SAMPLES_PER_FRAME
from serving.media.mp4 import Mp4Writer

_X264 = {"bf": "0", "g": "48", "threads": "1"}
"""Without B-frames the first frame is decoded and shown at time zero; one thread gives the same bytes everywhere."""
_AAC_BITS_PER_S = 96_000


def write_mp4(path: Path, video: NDArray[np.uint8], pcm: NDArray[np.int16], crf: int) -> None:
    """Write H.264 + AAC at 24 fps and 24 kHz mono; the file appears under its name only when complete.

    Args:
        path: the file, ending in .mp4.
        video: uint8 [T, H, W, 3] RGB; H and W even.
        pcm: int16 [1000 T] audio.
        crf: H.264 quality, lower is better.

    Raises:
        ValueError: video and audio differ in length.
    """
    frames, height, width = video.shape[:3]
    if len(pcm) != frames * SAMPLES_PER_FRAME:
        raise ValueError(f"{len(pcm)} samples for {frames} frames: give {SAMPLES_PER_FRAME} samples a frame")
    with Mp4Writer(
        path,
        height_px=height,
        width_px=width,
        crf=crf,
        movflags="+faststart",
        x264=_X264,
        audio_bits_per_s=_AAC_BITS_PER_S,
    ) as writer:
        for index, image in enumerate(video):
            start = index * SAMPLES_PER_FRAME
            writer.write(image[None], pcm[start : start + SAMPLES_PER_FRAME])
