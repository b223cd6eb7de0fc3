"""A head at rest with its 52 ARKit shapes, and the geometry that every head model shares."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

ICT_CREDIT: Final = "Head model ICT-FaceKit Light, USC Institute for Creative Technologies (MIT)."
"""Credit in the licence field of recordings made with an ICT-FaceKit file."""
SKIN_PART: Final = 0
TEETH_PART: Final = 1
MOUTH_PART: Final = 2
TONGUE_PART: Final = 3
FACECAP_SCALE: Final = 23.375
FACECAP_CENTRE: Final = np.array([0.0, 2.163, -3.4])

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRig:
    """A head at rest with its 52 ARKit shapes."""

    vertices: FloatArray
    """[N, 3] rest positions in the canonical frame."""
    triangles: IntArray
    """[M, 3] counter-clockwise seen from outside."""
    deltas: FloatArray
    """[52, N, 3] offsets of each ARKit shape."""
    part: NDArray[np.uint8]
    """[N] part of each vertex: skin, teeth, mouth bag or tongue."""
    follow: FloatArray
    """[N] 1 turns with the head, 0 stays with the shoulders."""
    rim: FloatArray
    """[N] 1 on the edge of the eyelids, falling to 0 two rings away."""
    eyes: FloatArray
    """[2, 3] centres of the eyeballs, image's left first."""
    eye_radius: float
    """Radius of the eyeballs."""
    neck_loop: IntArray
    """[K] vertices around the lower edge of the head, in order; K is 0 for a head with its own neck."""
    identity_modes: FloatArray
    """[J, N, 3] shape modes of the head model; J is 0 for the packaged head."""
    identity_eyes: FloatArray
    """[J, 2, 3] how those modes move the eyeballs."""
    credit: str
    """Credit and licence of the model, for the licence field of recordings."""


def components_of(triangles: IntArray, count: int) -> IntArray:
    """Label the connected component of each vertex, int32 [count]."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, columns = triangles[:, [0, 1, 2]].ravel(), triangles[:, [1, 2, 0]].ravel()
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    labels: IntArray = connected_components(graph, directed=False)[1].astype(np.int32)
    return labels


def boundary_loops(triangles: IntArray) -> list[IntArray]:
    """Return closed chains of vertices along boundary edges, longest first."""
    edges = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    known = {(int(a), int(b)) for a, b in edges}
    following = {a: b for a, b in known if (b, a) not in known}
    loops: list[IntArray] = []
    while following:
        start, current = following.popitem()
        loop = [start]
        while current != start:
            loop.append(current)
            if current not in following:
                break
            current = following.pop(current)
        loops.append(np.array(loop, np.int32))
    return sorted(loops, key=len, reverse=True)


def lid_rims(skin: IntArray, vertices: NDArray[np.float64], eyes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how close each vertex is to an eyelid's edge, float [N]: 1 on the edge.

    Args:
        skin: [M, 3] triangles of the skin alone.
        vertices: [N, 3] canonical positions.
        eyes: [2, 3] centres of the eyeballs.
    """
    rim = np.zeros(len(vertices))
    for loop in boundary_loops(skin):
        middle = vertices[loop].mean(0)
        if np.linalg.norm(eyes[:, :2] - middle[:2], axis=1).min() < 0.05:
            rim[loop] = 1.0
    for value in (0.75, 0.2):
        touched = skin[(rim[skin] > value).any(1)].ravel()
        rim[touched] = np.maximum(rim[touched], value)
    return rim


def tongue_shape() -> tuple[NDArray[np.float64], IntArray]:
    """Return a flattened dome inside the lower teeth: canonical vertices [N, 3] and triangles [M, 3]."""
    rows, columns = 6, 12
    polar, azimuth = np.meshgrid(
        np.linspace(0.05, 1.75, rows), np.linspace(0, 2 * np.pi, columns, endpoint=False), indexing="ij"
    )
    x = 1.55 * np.sin(polar) * np.sin(azimuth)
    z = 2.3 + 2.3 * np.sin(polar) * np.cos(azimuth)
    y = -5.05 + 0.75 * np.cos(polar)
    points = (np.stack([x, y, z], -1).reshape(-1, 3) - FACECAP_CENTRE) / FACECAP_SCALE
    return points, grid_triangles(rows, columns, closed=True)


def grid_triangles(rows: int, columns: int, *, closed: bool) -> IntArray:
    """Return the triangles [M, 3] of a row-major grid; rows go down, columns to the image's right in front."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    right = (column + 1) % columns
    a, b = row * columns + column, row * columns + right
    c, d = a + columns, b + columns
    quads = np.stack([a, c, b, b, c, d], -1).reshape(-1, 3)
    return quads.astype(np.int32)


def follow_nearby(
    points: NDArray[np.float64], anchors: NDArray[np.float64], deltas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the offsets of points [N, 3] that follow nearby anchors (inverse-distance weights)."""
    distance = np.linalg.norm(points[:, None] - anchors[None], axis=-1)
    weights = 1.0 / (distance**2 + 5e-4)
    weights /= weights.sum(1, keepdims=True)
    moved: NDArray[np.float64] = np.einsum("pa,kac->kpc", weights, deltas)
    return moved
