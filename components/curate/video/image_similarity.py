"""Image similarity, by which near-duplicates are detected."""

import numpy as np
from numpy.typing import NDArray

THUMB_PX = 32
"""Side of the thumbnails that are compared."""


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return an RGB image [H, W, 3] as float32 [32, 32, 3], scaled to 0..1 and less its mean."""
    import cv2

    small = cv2.resize(image, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.asarray(small - small.mean(), np.float32)


def image_distance(image: NDArray[np.uint8], thumbnails: NDArray[np.float32]) -> float:
    """Return the smallest root mean square difference of an image to frames, 0..1; 0 = equal up to brightness.

    Args:
        image: RGB [H, W, 3].
        thumbnails: `thumbnail` of each frame, [T, 32, 32, 3].
    """
    difference = thumbnails - thumbnail(image)[None]
    return float(np.sqrt(np.mean(np.square(difference), axis=(1, 2, 3))).min())
