"""Free-form deformation: smooth fields over the canonical frame that turn one head into many."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from components.performer.identity import SHAPE_NAMES, Identity

FloatArray = NDArray[np.float64]

_AMOUNTS: Final[dict[str, float]] = {
    "face_width": 0.045, "head_depth": 0.04, "head_length": 0.035, "jaw_width": 0.07, "jaw_angle": 0.02,
    "chin_length": 0.07, "chin_forward": 0.016, "cheek_fullness": 0.014, "cheekbones": 0.012, "nose_length": 0.016,
    "nose_width": 0.13, "nose_bridge": 0.012, "nose_tip": 0.016, "eye_size": 0.07, "eye_spacing": 0.009,
    "eye_height": 0.008, "eye_tilt": 0.05, "brow_ridge": 0.012, "forehead_slope": 0.05, "forehead_height": 0.04,
    "upper_lip": 0.16, "lower_lip": 0.16, "mouth_width": 0.06, "mouth_height": 0.008, "ear_size": 0.13,
    "neck_width": 0.09,
}  # fmt: skip
"""Size of one standard deviation of each trait (head heights, or a fraction where the trait scales)."""


def amount(identity: Identity, name: str) -> float:
    """Return a trait in its own unit."""
    return identity.shape[SHAPE_NAMES.index(name)] * _AMOUNTS[name]


def _bump(points: FloatArray, centre: tuple[float, float, float], radius: float, *, mirror: bool = False) -> FloatArray:
    """Return a Gaussian bump of height 1 around a centre (or around it and its mirror image)."""
    place = points.copy()
    if mirror:
        place[..., 0] = np.abs(place[..., 0])
    squared: FloatArray = ((place - np.array(centre)) ** 2).sum(-1)
    return np.asarray(np.exp(-squared / (2 * radius * radius)))


def _step(values: FloatArray, low: float, high: float) -> FloatArray:
    """Return 0 below low, 1 above high, smooth between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def deform(identity: Identity, points: FloatArray) -> FloatArray:
    """Return canonical points [..., 3] deformed to this person."""
    out = points.astype(np.float64).copy()
    _features(identity, points, out)
    _proportions(identity, points, out)
    return out


def _features(identity: Identity, points: FloatArray, out: FloatArray) -> None:
    """Deform eyes, nose, lips, cheeks and ears, in place."""

    def get(name: str) -> float:
        return amount(identity, name)

    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    side = np.sign(x)
    eye = _bump(points, (0.141, 0.02, 0.28), 0.085, mirror=True)
    # Lids, lashes and eyeball scale together about the eyeball's centre.
    out[..., 0] += eye * get("eye_size") * (x - side * 0.141) + side * eye * get("eye_spacing")
    out[..., 1] += eye * (get("eye_size") * (y - 0.019) + get("eye_height"))
    out[..., 1] += eye * get("eye_tilt") * (np.abs(x) - 0.141)
    out[..., 2] += eye * get("eye_size") * (z - 0.247)
    nose = _bump(points, (0.0, -0.12, 0.44), 0.07)
    out[..., 0] += nose * get("nose_width") * x
    out[..., 1] += nose * -get("nose_length") + _bump(points, (0, -0.12, 0.5), 0.05) * get("nose_tip") * 0.6
    out[..., 2] += _bump(points, (0, -0.11, 0.5), 0.055) * get("nose_tip")
    out[..., 2] += _bump(points, (0, 0.02, 0.43), 0.07) * get("nose_bridge")
    mouth = _bump(points, (0, -0.28, 0.4), 0.09)
    out[..., 0] += mouth * get("mouth_width") * x
    out[..., 1] += mouth * get("mouth_height")
    fuller = np.where(y > -0.279, get("upper_lip"), get("lower_lip"))
    lip = _bump(points, (0, -0.279, 0.41), 0.05) * _step(z, 0.385, 0.41)
    out[..., 1] += lip * fuller * (y + 0.279)
    out[..., 2] += lip * fuller * 0.05
    out[..., 0] += side * _bump(points, (0.24, -0.16, 0.22), 0.1, mirror=True) * get("cheek_fullness")
    out[..., 2] += _bump(points, (0.2, -0.15, 0.28), 0.1, mirror=True) * get("cheek_fullness") * 0.6
    bones = _bump(points, (0.25, -0.05, 0.24), 0.08, mirror=True)
    out[..., 0] += side * bones * get("cheekbones")
    out[..., 2] += bones * get("cheekbones") * 0.7
    out[..., 2] += _bump(points, (0.13, 0.1, 0.38), 0.07, mirror=True) * get("brow_ridge")
    ear = _step(np.abs(x), 0.33, 0.37) * _step(-z, 0.02, 0.08) * _step(0.16 - y, 0.0, 0.05)
    out[..., 0] += side * ear * get("ear_size") * (np.abs(x) - 0.34)
    out[..., 1] += ear * get("ear_size") * (y + 0.08)


def _proportions(identity: Identity, points: FloatArray, out: FloatArray) -> None:
    """Deform skull, jaw, chin and forehead, in place, by wide fields that move the features along."""

    def get(name: str) -> float:
        return amount(identity, name)

    y = points[..., 1]
    low = _step(-y, 0.08, 0.38)
    out[..., 0] *= 1 + get("face_width") + low * get("jaw_width")
    out[..., 2] *= 1 + get("head_depth")
    square = _bump(points, (0.26, -0.3, 0.05), 0.11, mirror=True)
    out[..., 0] += np.sign(points[..., 0]) * square * get("jaw_angle")
    out[..., 1] -= square * get("jaw_angle") * 0.5
    out[..., 1] -= _step(-y, 0.33, 0.5) * get("chin_length") * 0.5
    out[..., 2] += _bump(points, (0, -0.44, 0.36), 0.09) * get("chin_forward")
    high = np.maximum(0, y - 0.14)
    out[..., 1] += high * get("forehead_height") + y * get("head_length")
    out[..., 2] -= high * get("forehead_slope") * (points[..., 2] > 0) * _step(points[..., 2], 0.0, 0.3) * 2
