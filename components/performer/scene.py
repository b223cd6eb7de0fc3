"""Builds the scene of one person: everything that does not depend on the frame."""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from components.performer import raster
from components.performer.body import glasses, neck_rings, shoulders
from components.performer.face_paint import paint_face, texture_coordinates
from components.performer.hair import make_hair
from components.performer.head import MOUTH_PART, SKIN_PART, TEETH_PART, TONGUE_PART, HeadRig, grid_triangles
from components.performer.identity import Identity
from components.performer.mesh import Mesh, join, linear, make_mesh
from components.performer.shape import deform
from components.performer.tracks import ARKIT_INDEX

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]

_JAW: Final = tuple(ARKIT_INDEX[name] for name in ("jawOpen", "jawForward", "jawLeft", "jawRight"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One person, ready for rendering."""

    head: Mesh
    """The mesh that blendshapes move: skin, mouth, teeth, tongue, neck."""
    delta_starts: IntArray
    """[53] first row of each shape in the two arrays below."""
    delta_vertices: IntArray
    """[E] vertex of each offset."""
    deltas: FloatArray
    """[E, 3] offsets."""
    layers: tuple[tuple[IntArray, int, bool], ...]
    """Triangles of the head with their fill kind and whether back faces are culled."""
    texels: FloatArray
    """[N, 2] texture position of each head vertex."""
    texture: FloatArray
    """[rows, columns, 3] colour factors of the skin."""
    eyes: Mesh
    """Both eyeballs."""
    eye: FloatArray
    """[5, 3] gaze, iris, white, (iris radius, pupil radius, softness), direction of the catch-light."""
    worn: Mesh | None
    """Hair and glasses; they rotate with the head."""
    still: Mesh
    """Shoulders and clothes."""
    light: FloatArray
    """[8, 3] see raster.shade."""
    wall: FloatArray
    """[S, S, 3] linear light of the room behind."""


def build_scene(rig: HeadRig, identity: Identity, samples: int) -> Scene:
    """Build the scene of one person.

    Args:
        rig: the head model.
        identity: the person.
        samples: width and height of the supersampled image.
    """
    rest, deltas = _shaped(rig, identity)
    eyes = _eye_centres(rig, identity)
    vertices, triangles, follow, occlusion, deltas = _with_neck(rig, identity, rest, deltas)
    count = len(rig.vertices)
    part = np.concatenate([rig.part, np.full(len(vertices) - count, SKIN_PART, np.uint8)])
    occlusion[:count] = _occlusion(rig, rest)
    albedo, gloss = _head_colours(rig, identity, part)
    head = make_mesh(vertices, triangles, albedo, gloss=gloss, occlusion=occlusion, follow=follow)
    canonical = np.concatenate([rig.vertices.astype(np.float64), _neck_texels(rig, len(vertices) - count)])
    starts, rows, sparse = _sparse(deltas)
    kind = part[triangles[:, 0]]
    skin = rest[rig.part == SKIN_PART]
    flat = rig.vertices[rig.part == SKIN_PART]
    ears = (np.abs(flat[:, 0]) > 0.325) & (flat[:, 2] < 0.0) & (flat[:, 1] < 0.16)
    worn = make_hair(identity, skin[~ears])
    worn += glasses(identity, eyes, float(eyes[:, 2].mean()) + rig.eye_radius + 0.045)
    return Scene(
        head=head,
        delta_starts=starts,
        delta_vertices=rows,
        deltas=sparse,
        layers=(
            (triangles[kind == SKIN_PART], raster.SKIN, True),
            (triangles[kind == TEETH_PART], raster.PLAIN, True),
            (triangles[(kind == MOUTH_PART) | (kind == TONGUE_PART)], raster.PLAIN, False),
        ),
        texels=texture_coordinates(canonical),
        texture=paint_face(identity),
        eyes=_eyeballs(rig, identity, eyes),
        eye=_eye_appearance(identity),
        worn=join(worn) if worn else None,
        still=join(shoulders(identity)),
        light=_light(identity),
        wall=_wall(identity, samples),
    )


def _shaped(rig: HeadRig, identity: Identity) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return this person's rest positions, and offsets that follow the deformation (eyelids must still meet)."""
    base = rig.vertices + _own_modes(rig, identity, rig.identity_modes)
    identity = _softened(rig, identity)
    rest = deform(identity, base)
    # First order: offsets are stretched like the skin around them.
    step = 0.004
    axes = step * np.eye(3)
    stretch = np.stack([deform(identity, base + axis) - deform(identity, base - axis) for axis in axes], -1) / (
        2 * step
    )
    deltas = np.einsum("nij,knj->kni", stretch, rig.deltas)
    return rest, deltas


def _own_modes(rig: HeadRig, identity: Identity, modes: FloatArray) -> NDArray[np.float64]:
    """Return the offsets of the head's own identity modes for this person."""
    rng = np.random.default_rng([identity.seed, 4])
    amounts = np.clip(rng.normal(0, 0.9, len(modes)), -2, 2)
    return np.asarray(np.tensordot(amounts, modes.astype(np.float64), 1))


def _softened(rig: HeadRig, identity: Identity) -> Identity:
    """Halve the general deformation for heads that have identity modes."""
    fraction = 0.5 if len(rig.identity_modes) else 1.0
    return replace(identity, shape=tuple(value * fraction for value in identity.shape))


def _eye_centres(rig: HeadRig, identity: Identity) -> NDArray[np.float64]:
    centres = rig.eyes + _own_modes(rig, identity, rig.identity_eyes)
    return deform(_softened(rig, identity), centres)


def _with_neck(
    rig: HeadRig, identity: Identity, rest: NDArray[np.float64], deltas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], IntArray, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Append the rings of the neck to the head."""
    loop = rig.neck_loop
    if not len(loop):
        return rest, rig.triangles, rig.follow.astype(np.float64), np.ones(len(rest)), deltas
    points, ring_follow, ring_jaw, ring_occlusion = neck_rings(identity, rest[loop])
    rings, size = points.shape[:2]
    start = len(rest)
    grid = grid_triangles(rings + 1, size, closed=True)
    index = np.concatenate([loop, np.arange(start, start + rings * size)]).astype(np.int32)
    triangles = index[grid]
    # The loop may run either way round; faces must look outwards.
    everything = np.concatenate([rest, points.reshape(-1, 3)])
    corner = everything[triangles]
    outward = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    if float((outward[:, [0, 2]] * corner.mean(1)[:, [0, 2]]).sum()) < 0:
        triangles = triangles[:, ::-1]
    extra = np.zeros((len(deltas), rings * size, 3))
    for shape in _JAW:
        extra[shape] = (deltas[shape, loop][None] * ring_jaw[:, None, None]).reshape(-1, 3)
    follow = np.concatenate([rig.follow, np.repeat(ring_follow, size)])
    occlusion = np.concatenate([np.ones(start), np.repeat(ring_occlusion, size)])
    return (
        everything,
        np.concatenate([rig.triangles, triangles]).astype(np.int32),
        follow,
        occlusion,
        np.concatenate([deltas, extra], 1),
    )


def _neck_texels(rig: HeadRig, count: int) -> NDArray[np.float64]:
    """Return the neck's texture positions, which continue the texture below the jaw's edge."""
    loop = rig.vertices[rig.neck_loop].astype(np.float64)
    rings = count // max(1, len(loop))
    points = np.repeat(loop[None], rings, 0)
    points[..., 1] = np.minimum(points[..., 1] - 0.03 * np.arange(1, rings + 1)[:, None], -0.5)
    points[1:, :, 1] = -0.555
    return points.reshape(-1, 3)


def _occlusion(rig: HeadRig, rest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ambient occlusion [N]: soft shadow in hollows (eye sockets, nostrils, by the nose) and the mouth."""
    result = np.ones(len(rest))
    skin = np.flatnonzero(rig.part == SKIN_PART)
    chosen = np.flatnonzero((rig.part[rig.triangles] == SKIN_PART).all(1))
    normal = np.zeros((len(rest), 3), np.float32)
    raster.normals(rest.astype(np.float32), rig.triangles[chosen], normal)
    points, directions = rest[skin], normal[skin].astype(np.float64)
    hollow = np.zeros(len(skin))
    around = points[:: 1 + len(points) // 4000]
    for start in range(0, len(skin), 1000):
        rows = slice(start, start + 1000)
        offset = around[None] - points[rows, None]
        distance = np.sqrt((offset**2).sum(-1)) + 1e-9
        height = np.einsum("ijk,ik->ij", offset, directions[rows]) / distance
        for radius, strength in ((0.035, 0.5), (0.1, 0.7)):
            weight = np.exp(-((distance / radius) ** 2))
            hollow[rows] += strength * np.maximum(0, (weight * height).sum(1) / weight.sum(1))
    result[skin] = np.clip(1.06 - 1.5 * hollow, 0.3, 1.0)
    inside = rig.part != SKIN_PART
    depth = np.clip((rig.vertices[:, 2] - 0.27) / 0.11, 0, 1)
    result[inside] = (0.1 + 0.75 * depth**1.5)[inside]
    result[rig.part == MOUTH_PART] *= 0.5
    return result


def _head_colours(
    rig: HeadRig, identity: Identity, part: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    skin = linear(identity.skin)
    albedo = np.broadcast_to(skin, (len(part), 3)).copy()
    albedo[part == TEETH_PART] = (0.78, 0.74, 0.66)
    albedo[part == MOUTH_PART] = (0.16, 0.045, 0.04)
    albedo[part == TONGUE_PART] = (0.46, 0.15, 0.14)
    rim = np.concatenate([rig.rim, np.zeros(len(part) - len(rig.rim))])
    above = np.concatenate([rig.vertices[:, 1], np.zeros(len(part) - len(rig.rim))]) > 0.012
    lash = np.minimum(linear(identity.brows), 0.05)
    fraction = rim * np.where(above, 0.92, 0.45)
    albedo += (lash - albedo) * fraction[:, None]
    gloss = np.where(part == SKIN_PART, 0.07, 0.15)
    return albedo, gloss


def _sparse(deltas: NDArray[np.float64]) -> tuple[IntArray, IntArray, FloatArray]:
    moved = [np.flatnonzero(np.abs(delta).max(1) > 1e-5) for delta in deltas]
    starts = np.cumsum([0] + [len(rows) for rows in moved]).astype(np.int32)
    values = np.concatenate([delta[rows] for delta, rows in zip(deltas, moved, strict=True)])
    return starts, np.concatenate(moved).astype(np.int32), values.astype(np.float32)


def _eyeballs(rig: HeadRig, identity: Identity, centres: NDArray[np.float64]) -> Mesh:
    """Build the front of both eyeballs, sized by how the deformation stretches their surroundings."""
    rows, columns = 9, 20
    polar, azimuth = np.meshgrid(
        np.linspace(0.02, 1.5, rows), np.linspace(0, 2 * np.pi, columns, endpoint=False), indexing="ij"
    )
    ball = np.stack([np.sin(polar) * np.sin(azimuth), np.sin(polar) * np.cos(azimuth), np.cos(polar)], -1)
    ball = ball.reshape(-1, 3)
    step = rig.eye_radius * 0.5
    triangles = grid_triangles(rows, columns, closed=True)[:, ::-1]
    meshes = []
    for centre, canonical in zip(centres, rig.eyes.astype(np.float64), strict=True):
        probes = deform(_softened(rig, identity), canonical + step * np.concatenate([np.eye(3), -np.eye(3)]))
        stretch = float(np.linalg.norm(probes[:3] - probes[3:], axis=1).min() / (2 * step))
        points = centre + ball * rig.eye_radius * stretch * 0.985
        shadow = np.clip(0.95 - 1.2 * np.maximum(0, ball[:, 1] - 0.05) - 0.35 * np.abs(ball[:, 0]), 0.3, 1)
        meshes.append(make_mesh(points, triangles, np.ones(3), gloss=0.0, occlusion=shadow))
    return join(meshes)


def _eye_appearance(identity: Identity) -> FloatArray:
    key = _direction(identity.light_yaw * 0.6, identity.light_pitch * 0.7)
    return np.array(
        [[0, 0, 1], linear(identity.iris), (0.66, 0.64, 0.62), (0.47, 0.19, 0.1), _unit(key + [0, 0, 1.0])],
        np.float32,
    )


def _direction(yaw: float, pitch: float) -> NDArray[np.float64]:
    return np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))


def _light(identity: Identity) -> FloatArray:
    warm = identity.light_warmth
    key = _direction(identity.light_yaw, identity.light_pitch)
    key_colour = np.array([1.0 + 0.07 * warm, 1.0, 1.0 - 0.10 * warm]) * 0.78
    room = 0.7 + 0.3 * linear(identity.wall) / max(0.05, float(linear(identity.wall).mean()))
    back = _direction(-np.sign(identity.light_yaw or 1.0) * 2.2, 0.5)
    return np.array(
        [
            key, key_colour, room * 0.50, room * np.array([0.26, 0.24, 0.22]), back, room * 0.30, (0.05, 0.012, 0.006),
            _unit(key + np.array([0.0, 0.0, 1.0])),
        ],
        np.float32,
    )  # fmt: skip


def _wall(identity: Identity, samples: int) -> FloatArray:
    """Return a wall out of focus, [S, S, 3] linear light: a soft gradient with one broad patch of light."""
    down, across = np.mgrid[0:samples, 0:samples] / samples - 0.5
    rng = np.random.default_rng([identity.seed, 3])
    slope = across * math.cos(identity.wall_tilt) + down * math.sin(identity.wall_tilt)
    spot = rng.uniform(-0.6, 0.6, 2)
    glow = np.exp(-((across - spot[0]) ** 2 + (down - spot[1]) ** 2) / 0.25)
    tone = 0.85 + 0.45 * slope + 0.25 * glow - 0.35 * (across**2 + down**2)
    return np.asarray(linear(identity.wall) * tone[..., None] * 0.9, np.float32)
