"""Neck, shoulders, clothes and glasses."""

import numpy as np
from numpy.typing import NDArray

from components.performer.head import grid_triangles
from components.performer.identity import Identity
from components.performer.mesh import Mesh, linear, make_mesh
from components.performer.shape import amount, deform

FloatArray = NDArray[np.float64]

NECK_BASE = -0.70
_RINGS = np.array([
    # height, half width, half depth, centre z
    [-0.62, 0.19, 0.18, -0.10], [-0.66, 0.22, 0.19, -0.11], [-0.71, 0.30, 0.21, -0.12], [-0.76, 0.44, 0.23, -0.12],
    [-0.82, 0.62, 0.26, -0.12], [-0.90, 0.76, 0.29, -0.11], [-1.02, 0.83, 0.32, -0.10], [-1.50, 0.80, 0.34, -0.10],
])  # fmt: skip


def _torso(angle: FloatArray, height: FloatArray, grow: float | FloatArray = 0.0) -> FloatArray:
    """Return points on the trunk; angle 0 is the front, positive to the image's right."""
    down = -height
    wide, deep, middle = (np.interp(down, -_RINGS[:, 0], _RINGS[:, column]) for column in (1, 2, 3))
    return np.stack([(wide + grow) * np.sin(angle), height, middle + (deep + grow) * np.cos(angle)], -1)


def _ring(count: int) -> FloatArray:
    return np.linspace(-np.pi, np.pi, count, endpoint=False)


def shoulders(identity: Identity) -> list[Mesh]:
    """Build the static neck base and clothes."""
    skin = linear(identity.skin)
    angle, height = np.meshgrid(_ring(48), np.linspace(-0.64, -0.95, 8), indexing="xy")
    bare = make_mesh(
        _torso(angle, height), grid_triangles(8, 48, closed=True), skin * 0.93, occlusion=0.8, follow=0.0, gloss=0.05
    )
    return [bare, *_clothes(identity)]


def _neckline(style: str, angle: FloatArray) -> FloatArray:
    front = np.maximum(0, np.cos(angle)) ** 2
    if style == "v_neck":
        return -0.70 - 0.02 * front - 0.14 * np.clip(1 - np.abs(angle) / 0.55, 0, 1)
    if style == "shirt":
        return -0.675 - 0.09 * np.clip(1 - np.abs(angle) / 0.3, 0, 1)
    if style == "jumper":
        return np.asarray(-0.675 - 0.015 * front)
    return np.asarray(-0.70 - 0.045 * front)


def _clothes(identity: Identity) -> list[Mesh]:
    fabric = linear(identity.fabric)
    columns, rows = 72, 14
    angle = _ring(columns)
    start = _neckline(identity.clothes, angle)
    fraction = np.linspace(0, 1, rows)[:, None] ** 1.6
    height = start + (-1.5 - start) * fraction
    occlusion = np.clip(0.7 + 0.8 * fraction, 0, 1) * np.ones((1, columns))
    meshes = [
        make_mesh(
            _torso(np.broadcast_to(angle, height.shape), height, 0.018),
            grid_triangles(rows, columns, closed=True),
            fabric,
            occlusion=occlusion,
            follow=0.0,
            gloss=0.02,
        )
    ]
    if identity.clothes == "shirt":
        meshes.append(_collar(fabric))
    else:
        meshes.append(_band(angle, start, fabric, 0.028 if identity.clothes == "jumper" else 0.016))
    return meshes


def _band(angle: FloatArray, height: FloatArray, fabric: FloatArray, radius: float) -> Mesh:
    """Build a rolled edge along the neckline."""
    around = np.linspace(0, 2 * np.pi, 8)[:, None]
    spine = _torso(angle, height + 0.006, 0.02)
    outward = np.stack([np.sin(angle), 0 * angle, np.cos(angle)], -1)
    points = spine + radius * np.cos(around)[..., None] * outward
    points[..., 1] += radius * np.sin(around)
    return make_mesh(
        points, grid_triangles(8, len(angle), closed=True), fabric * 0.8, occlusion=0.9, follow=0.0, gloss=0.02
    )


def _collar(fabric: FloatArray) -> Mesh:
    """Build a turned-down shirt collar, open in front."""
    angle = np.linspace(0.16, 2 * np.pi - 0.16, 60)
    turned = np.where(angle > np.pi, angle - 2 * np.pi, angle)
    point = np.exp(-(((np.abs(turned) - 0.42) / 0.22) ** 2))
    rows = [
        _torso(angle, np.full_like(angle, -0.70), 0.02),
        _torso(angle, np.full_like(angle, -0.63), 0.035),
        _torso(angle, np.full_like(angle, -0.635), 0.05),
        _torso(angle, -0.715 - 0.075 * point, 0.045 - 0.01 * point),
    ]
    return make_mesh(
        np.stack(rows),
        grid_triangles(4, 60, closed=False),
        np.minimum(1, fabric * 1.25 + 0.02),
        occlusion=np.repeat([0.5, 0.9, 1.0, 1.0], 60),
        follow=0.0,
        gloss=0.02,
    )


def neck_rings(identity: Identity, loop: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Build the rings that connect the head's lower edge to the shoulders.

    Args:
        identity: the person.
        loop: [K, 3] the edge, in order.

    Returns:
        Points [R, K, 3]; how much each ring follows the head [R] and the jaw [R]; its occlusion [R].
    """
    middle = np.array([0.0, 0.0, -0.11])
    angle = np.arctan2(loop[:, 0], loop[:, 2] - middle[2])
    width = 1 + amount(identity, "neck_width")
    base = np.stack([0.19 * width * np.sin(angle), 0 * angle, middle[2] + 0.18 * width * np.cos(angle)], -1)
    inward, sink = np.array([0.45, 0.85, 1.0, 1.0, 1.03]), np.array([0.03, 0.12, 0.35, 0.7, 1.0])
    points = loop[None] + (base - loop)[None] * inward[:, None, None]
    points[..., 1] = loop[None, :, 1] + (NECK_BASE - loop[None, :, 1]) * sink[:, None]
    follow = np.array([0.95, 0.75, 0.45, 0.15, 0.0])
    return points, follow, np.array([0.6, 0.25, 0.05, 0.0, 0.0]), np.array([0.5, 0.45, 0.6, 0.75, 0.8])


def glasses(identity: Identity, eyes: FloatArray, front: float) -> list[Mesh]:
    """Build the glasses (none for most people).

    Args:
        identity: the person.
        eyes: [2, 3] centres of the eyeballs.
        front: z just in front of the lashes.
    """
    if identity.glasses == "none":
        return []
    colour = linear(identity.glasses_colour)
    spread = abs(float(eyes[1, 0]))
    half = min(0.098, spread - 0.022)
    around = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    power = 0.62 if identity.glasses == "square" else 1.0
    outline_x = half * np.sign(np.sin(around)) * np.abs(np.sin(around)) ** power
    outline_y = half * 0.82 * np.sign(np.cos(around)) * np.abs(np.cos(around)) ** power
    height = float(eyes[:, 1].mean()) - 0.012
    paths: list[tuple[FloatArray, bool]] = []
    for side in (-1.0, 1.0):
        rim = np.stack([side * spread + outline_x, height + outline_y, front - 0.1 * np.abs(outline_x + side * 0) ** 2
                        - 0.012 * side * outline_x / half], -1)  # fmt: skip
        paths.append((rim, True))
        hinge = np.array([side * (spread + half), height + 0.03, front - 0.02])
        ear = deform(identity, np.array([side * 0.352, 0.06, -0.06]))
        paths.append((hinge + (ear - hinge) * np.linspace(0, 1, 6)[:, None], False))
    inner = spread - half
    bow = np.linspace(-1, 1, 7)
    bridge = np.stack([bow * inner, height + 0.028 - 0.012 * bow**2, front + 0.012 * (1 - bow**2)], -1)
    paths.append((bridge, False))
    return [_tube(path, 0.0085, colour, closed=closed) for path, closed in paths]


def _tube(path: FloatArray, radius: float, colour: FloatArray, *, closed: bool) -> Mesh:
    """Build a thin tube along a path."""
    count = len(path)
    along = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    helper = np.where(np.abs(along[:, 2:3]) > 0.9, np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    around = np.linspace(0, 2 * np.pi, 6)[:, None, None]
    points = path + radius * (np.cos(around) * first + np.sin(around) * second)
    return make_mesh(points, grid_triangles(6, count, closed=closed), colour, gloss=0.3)
