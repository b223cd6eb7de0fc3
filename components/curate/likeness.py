"""How alike two pictures are: as pictures (is one a copy of the other?) and as faces (is it one person?)."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.faces import landmarks

THUMB_PX = 32
"""Side of the thumbnails that are compared."""
_FACE_PX = 24
_ANCHORS = (33, 263, 1, 152)
"""Outer eye corners, tip of the nose and chin."""
_PLACES = np.array([(0.24, 0.36), (0.76, 0.36), (0.50, 0.60), (0.50, 0.97)], np.float32)
"""Where they go in the aligned face, as shares of its side."""


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


def embedding(picture: NDArray[np.uint8], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """A face descriptor: the face aligned by eyes, nose and chin, its light and contrast taken out.

    The cosine of two descriptors is the normalised cross-correlation of two aligned faces.

    Args:
        picture: RGB [H, W, 3].
        points: landmarks [478, 3] in pixels.

    Returns:
        float32 [24 * 24 * 3] of length 1.
    """
    import cv2

    matrix, _ = cv2.estimateAffine2D(
        points[list(_ANCHORS), :2].astype(np.float32), _PLACES * _FACE_PX, method=cv2.LMEDS
    )
    if matrix is None:
        return np.zeros(_FACE_PX * _FACE_PX * 3, np.float32)
    face = cv2.warpAffine(picture, matrix, (_FACE_PX, _FACE_PX), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    lab = cv2.cvtColor(face, cv2.COLOR_RGB2LAB).astype(np.float32) / 255
    lab[..., 0] = (lab[..., 0] - lab[..., 0].mean()) / max(float(lab[..., 0].std()), 1e-3)
    lab[..., 1:] = (lab[..., 1:] - 0.5) / 0.05
    vector = lab.reshape(-1)
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-6), np.float32)


@functools.cache
def _still_mesh() -> Any:
    import mediapipe

    return mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True)


def describe(picture: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """The descriptor of the largest face of an RGB picture [H, W, 3], None where none is found."""
    found = _still_mesh().process(np.ascontiguousarray(picture)).multi_face_landmarks
    if not found:
        return None
    return embedding(picture, landmarks(found[0], picture))
