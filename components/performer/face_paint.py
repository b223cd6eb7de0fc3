"""Paints a face: a small texture of colour factors over the front view of the canonical head."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from components.performer.identity import Identity
from components.performer.mesh import linear

TEXELS_PER_UNIT: Final = 180
HALF_WIDTH: Final = 0.46
HALF_HEIGHT: Final = 0.56
SEAM: Final = -0.279
"""Height of the line between the closed lips."""

FloatArray = NDArray[np.float64]


def texture_coordinates(points: FloatArray) -> NDArray[np.float32]:
    """Return texel positions [N, 2] of canonical points [N, 3] in the front view."""
    across = (points[:, 0] + HALF_WIDTH) * TEXELS_PER_UNIT
    down = (HALF_HEIGHT - points[:, 1]) * TEXELS_PER_UNIT
    return np.stack([across, down], -1).astype(np.float32)


def paint_face(identity: Identity) -> NDArray[np.float32]:
    """Return factors on the skin colour, float32 [rows, columns, 3]: blush, lips, brows, beard, hair roots."""
    y, x = np.mgrid[HALF_HEIGHT : -HALF_HEIGHT : -1 / TEXELS_PER_UNIT, -HALF_WIDTH : HALF_WIDTH : 1 / TEXELS_PER_UNIT]
    skin = linear(identity.skin)
    albedo = np.broadcast_to(skin, (*x.shape, 3)).copy()
    rng = np.random.default_rng([identity.seed, 1])
    grain = _smooth_noise(rng, x.shape, 2.0)
    _blush(identity, x, y, albedo)
    _mix(albedo, linear(identity.hair) * 0.8 + skin * 0.2, _roots(identity, x, y))
    beard = _beard(identity, x, y, grain)
    hair = linear(identity.hair) * 0.85
    lips = _lips(x, y)
    _mix(albedo, hair, beard * (1 - lips))
    _mix(albedo, linear(identity.lips), lips * 0.9)
    seam = np.exp(-(((y - SEAM) / 0.006) ** 2)) * _inside(np.abs(x), 0.1, 0.01)
    albedo *= (1 - 0.5 * seam)[..., None]
    _mix(albedo, linear(identity.brows), _brows(identity, x, y) * (0.85 + 0.15 * grain))
    return np.ascontiguousarray(albedo / skin, np.float32)


def _mix(albedo: FloatArray, colour: FloatArray, fraction: FloatArray) -> None:
    albedo += (colour - albedo) * np.clip(fraction, 0, 1)[..., None]


def _hill(x: FloatArray, y: FloatArray, centre: tuple[float, float], radius: tuple[float, float]) -> FloatArray:
    return np.asarray(np.exp(-(((np.abs(x) - centre[0]) / radius[0]) ** 2) - ((y - centre[1]) / radius[1]) ** 2))


def _inside(values: FloatArray, limit: float | FloatArray, soft: float) -> FloatArray:
    """Return 1 well below the limit, 0 well above, smooth over +-soft."""
    t = np.clip((np.asarray(limit) - values) / (2 * soft) + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> FloatArray:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.normal(0, 1, shape), sigma)
    return np.asarray(np.clip(noise / noise.std(), -2, 2) * 0.5)


def _blush(identity: Identity, x: FloatArray, y: FloatArray, albedo: FloatArray) -> None:
    warm = _hill(x, y, (0.2, -0.12), (0.09, 0.07)) + 0.6 * _hill(x, y, (0.0, -0.13), (0.05, 0.05))
    warm += 0.3 * _hill(x, y, (0.0, -0.44), (0.08, 0.05))
    albedo *= 1 - identity.blush * warm[..., None] * np.array([0.02, 0.24, 0.22])
    socket = _hill(x, y, (0.141, 0.02), (0.085, 0.05))
    albedo *= 1 - socket[..., None] * np.array([0.1, 0.14, 0.13])


def _lips(x: FloatArray, y: FloatArray) -> FloatArray:
    across = np.clip(1 - (np.abs(x) / 0.103) ** 2, 0, 1)
    bow = 0.007 * np.exp(-((x / 0.02) ** 2))
    top = SEAM + 0.006 * (np.abs(x) / 0.1) + 0.052 * across**0.9 - bow
    bottom = SEAM + 0.006 * (np.abs(x) / 0.1) - 0.062 * across**0.75
    return _inside(y, top, 0.006) * _inside(-y, -bottom, 0.007) * _inside(np.abs(x), 0.103, 0.006)


def _brows(identity: Identity, x: FloatArray, y: FloatArray) -> FloatArray:
    along = np.clip((np.abs(x) - 0.055) / 0.175, -0.2, 1.2)
    rise = 0.022 + 0.009 * identity.brow_arch
    height = 0.094 + 0.01 * identity.brow_height + rise * np.sin(np.clip(along, 0, 1) * 2.3) - 0.012 * along
    half = 0.0125 * identity.brow_thickness * (1 - 0.55 * np.clip(along, 0, 1) ** 2)
    return _inside(np.abs(y - height), half, 0.007) * _inside(-along, 0.0, 0.05) * _inside(along, 0.98, 0.08)


def _roots(identity: Identity, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return where hair grows, which hides the skin between locks."""
    if identity.hair_style == "bald":
        return np.zeros_like(x)
    line = 0.345 + 0.03 * identity.hairline - 1.1 * np.maximum(0, np.abs(x) - 0.16) ** 1.5
    return _inside(-y, -line, 0.02) * 0.9


def _beard(identity: Identity, x: FloatArray, y: FloatArray, grain: FloatArray) -> FloatArray:
    if identity.beard == "none":
        return np.zeros_like(x)
    side = np.abs(x)
    moustache = _inside(np.abs(y + 0.207 + 2.2 * side**2), 0.015, 0.012) * _inside(side, 0.105, 0.03)
    jaw = _inside(y, -0.27 + 1.6 * np.maximum(0, side - 0.19), 0.05)
    jaw = jaw * (1 - _hill(x, y, (0.0, -0.28), (0.12, 0.055)))
    ring = np.sqrt((x / 0.125) ** 2 + ((y + 0.295) / 0.095) ** 2)
    around = 0.55 * _inside(np.abs(ring - 1.0), 0.1, 0.12)
    chin = _hill(x, y, (0.0, -0.425), (0.1, 0.062)) * 1.5
    strength = {"stubble": 0.32, "moustache": 0.75, "goatee": 0.66, "full": 0.85}[identity.beard]
    area = {
        "stubble": np.maximum(moustache, jaw),
        "moustache": moustache,
        "goatee": np.maximum(moustache, np.maximum(around, np.clip(chin, 0, 1))),
        "full": np.maximum(moustache, jaw),
    }[identity.beard]
    below = _inside(-y, 0.528, 0.02) * _inside(side, 0.318, 0.012)
    return np.asarray(area * below * strength * (0.94 + 0.12 * grain))
