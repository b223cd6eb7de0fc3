"""How alike two pictures are: is one a copy of the other?"""

import numpy as np
from numpy.typing import NDArray

THUMB_PX = 32
"""Side of the thumbnails that are compared."""


def thumbnail(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness and colours of an RGB picture, float32 [32, 32, 3] in 0..1, without its mean brightness."""
    import cv2

    small = cv2.resize(picture, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.asarray(small - small.mean(), np.float32)


def copy_distance(picture: NDArray[np.uint8], thumbnails: NDArray[np.float32]) -> float:
    """Smallest root mean square difference of a picture to frames, 0..1; 0 = a copy but for the light.

    Args:
        picture: RGB [H, W, 3].
        thumbnails: of the frames, [T, 32, 32, 3].
    """
    difference = thumbnails - thumbnail(picture)[None]
    return float(np.sqrt(np.mean(np.square(difference), axis=(1, 2, 3))).min())
