"""Meshes ready to be lit and drawn, and the renderer's colour curve."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.performer.raster import LIGHT_RANGE, normals

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Triangles with colours, in one person's coordinates."""

    vertices: FloatArray
    """[N, 3] positions."""
    triangles: IntArray
    """[M, 3] counter-clockwise from outside."""
    albedo: FloatArray
    """[N, 3] linear colour."""
    gloss: FloatArray
    """[N] strength of highlights."""
    occlusion: FloatArray
    """[N] ambient occlusion: 1 unoccluded, 0 fully occluded."""
    follow: FloatArray
    """[N] 1 turns with the head, 0 stays with the shoulders."""

    def normals(self) -> FloatArray:
        """Compute unit normals, float32 [N, 3]."""
        out = np.empty_like(self.vertices)
        normals(self.vertices, self.triangles, out)
        return out


def make_mesh(
    vertices: ArrayLike,
    triangles: IntArray,
    albedo: ArrayLike,
    *,
    gloss: ArrayLike = 0.05,
    occlusion: ArrayLike = 1.0,
    follow: ArrayLike = 1.0,
) -> Mesh:
    """Build a mesh from arrays, or from single values that apply to every vertex."""
    points = np.ascontiguousarray(vertices, np.float32).reshape(-1, 3)

    def spread(values: ArrayLike) -> FloatArray:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(values, np.float32).reshape(-1), len(points)))

    return Mesh(
        vertices=points,
        triangles=np.ascontiguousarray(triangles, np.int32),
        albedo=np.ascontiguousarray(np.broadcast_to(np.asarray(albedo, np.float32).reshape(-1, 3), points.shape)),
        gloss=spread(gloss),
        occlusion=spread(occlusion),
        follow=spread(follow),
    )


def join(meshes: list[Mesh]) -> Mesh:
    """Concatenate meshes."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        triangles=np.concatenate([mesh.triangles + start for mesh, start in zip(meshes, starts, strict=False)])
        .astype(np.int32),
        albedo=np.concatenate([mesh.albedo for mesh in meshes]),
        gloss=np.concatenate([mesh.gloss for mesh in meshes]),
        occlusion=np.concatenate([mesh.occlusion for mesh in meshes]),
        follow=np.concatenate([mesh.follow for mesh in meshes]),
    )  # fmt: skip


def linear(colour: ArrayLike) -> NDArray[np.float64]:
    """Convert sRGB in 0..1 to linear light."""
    return np.asarray(np.asarray(colour, np.float64) ** 2.2)


def display_curve() -> NDArray[np.uint8]:
    """Return uint8 [4096] for linear light 0..LIGHT_RANGE: sRGB-like with a soft shoulder for highlights."""
    light = np.linspace(0, LIGHT_RANGE, 4096)
    knee = 0.75
    soft = np.where(light < knee, light, knee + (1 - knee) * np.tanh((light - knee) / (1 - knee)))
    return np.asarray(np.round(255 * np.clip(soft, 0, 1) ** (1 / 2.2)), np.uint8)
