"""Read a still image with PyAV and reduce it to the square that a model expects."""

from pathlib import Path

import av
import av.error
import numpy as np
import numpy.typing as npt

from serving.media.mp4 import LOCAL_FILES_ONLY

Image = npt.NDArray[np.uint8]

MAX_IMAGE_BYTES = 40_000_000
"""Largest image file that is opened."""
MAX_IMAGE_PX = 50_000_000
"""Largest number of pixels of an image that is decoded: decoding a larger one takes gigabytes."""


def read_image(path: Path, size_px: int) -> Image:
    """Read an image, crop its centre square and scale it.

    Args:
        path: PNG, JPEG or any other format that FFmpeg reads.
        size_px: side of the returned square.

    Returns:
        uint8 [size_px, size_px, 3] RGB.

    Raises:
        ValueError: the file is missing, too large or not an image.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the path of an image")
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: scale it below {MAX_IMAGE_BYTES} bytes")
    try:
        with av.open(str(path.resolve()), options=LOCAL_FILES_ONLY) as container:
            if not container.streams.video:
                raise ValueError(f"{path} is not an image: give a PNG or JPEG")
            stream = container.streams.video[0]
            if stream.codec_context.width * stream.codec_context.height > MAX_IMAGE_PX:
                size = f"{stream.codec_context.width}x{stream.codec_context.height}"
                raise ValueError(f"{path} has {size} px: scale it below {MAX_IMAGE_PX // 1_000_000} megapixels")
            image = next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError, StopIteration) as error:
        raise ValueError(f"{path} is not a readable image ({error}): give a PNG or JPEG") from error
    return centre_square(image, size_px)


def centre_square(image: Image, size_px: int) -> Image:
    """Crop the centre square of a uint8 [H, W, 3] image and scale it to uint8 [size_px, size_px, 3]."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"a character image is uint8 [H, W, 3], not {image.dtype} {image.shape}: convert it to RGB")
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    cropped = np.ascontiguousarray(image[top : top + side, left : left + side])
    if side == size_px:
        return cropped
    frame = av.VideoFrame.from_ndarray(cropped, format="rgb24")
    scaled: Image = frame.reformat(width=size_px, height=size_px, interpolation="AREA").to_ndarray(format="rgb24")
    return scaled
