"""Heads the performer can wear, brought to one canonical form: the packaged facecap head or ICT-FaceKit Light.

Canonical frame: x to the picture's right, y up, z towards the camera; one unit is the head's height, the chin is at
y = -0.5 and the crown at +0.5.
"""

import json
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from components.ingest.performer.tracks import ARKIT_INDEX
from components.packaged import PackagedWeights

HEAD_CREDIT: Final = 'Head model "facecap" by Bannaflak (from three.js), fine to use as long as credited.'
"""Licence line that every recording made with the packaged head carries."""
ICT_CREDIT: Final = "Head model ICT-FaceKit Light, USC Institute for Creative Technologies, MIT licence."
"""Licence line of recordings made with an ICT-FaceKit file."""

_FACECAP: Final = PackagedWeights(
    package="openfacefx",
    requirement="openfacefx==0.24.0",
    member="studio_web/assets/facecap.glb",
    sha256="6bfce6d0fcbb5839f5102b79733007859fef7c5df6d9eb49e2264542810b5f64",
)

SKIN_PART: Final = 0
TEETH_PART: Final = 1
MOUTH_PART: Final = 2
TONGUE_PART: Final = 3

_FACECAP_SCALE: Final = 23.375
_FACECAP_CENTRE: Final = np.array([0.0, 2.163, -3.4])
_FACECAP_EYE: Final = np.array([3.2895, 2.6122508, 2.38155508])

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
    """[N] what a vertex belongs to: skin, teeth, mouth bag or tongue."""
    follow: FloatArray
    """[N] 1 turns with the head, 0 stays with the shoulders."""
    rim: FloatArray
    """[N] 1 on the edge of the eyelids, falling to 0 two rings away."""
    eyes: FloatArray
    """[2, 3] centres of the eyeballs, picture's left first."""
    eye_radius: float
    """Radius of the eyeballs."""
    neck_loop: IntArray
    """[K] vertices around the lower edge of the head, in order; K is 0 for a head with its own neck."""
    identity_modes: FloatArray
    """[J, N, 3] shape modes the head brings along; J is 0 for the packaged head."""
    identity_eyes: FloatArray
    """[J, 2, 3] how those modes move the eyeballs."""
    credit: str
    """Whom to thank, for the recording's licence."""


def load_rig(head: str = "") -> HeadRig:
    """The rig behind a head's name.

    Args:
        head: empty for the packaged head, else the path of an `ict_light.npz`.

    Raises:
        ValueError: the package or file is missing.
    """
    if not head:
        return _facecap()
    from components.ingest.performer.rig_ict import load_ict

    return load_ict(head)


@lru_cache(maxsize=1)
def _facecap() -> HeadRig:
    glb = _Glb(_FACECAP.path().read_bytes())
    head, triangles, deltas = _weld(*glb.mesh(2))
    part = _facecap_parts(head, triangles)
    _close_lips(head, triangles, part)
    teeth, teeth_triangles, _ = glb.mesh(3)
    # A little further back and up than modelled: they would show through the closed lips of some people.
    teeth += np.array([0.0, 0.1, -0.15])
    eye, _, _ = glb.mesh(0)
    head, teeth, deltas = (
        (head - _FACECAP_CENTRE) / _FACECAP_SCALE,
        (teeth - _FACECAP_CENTRE) / _FACECAP_SCALE,
        (deltas / _FACECAP_SCALE),
    )
    tongue, tongue_triangles = tongue_shape()
    lower = np.flatnonzero(part == TEETH_PART)
    tongue_deltas = follow_nearby(tongue, head[lower], deltas[:, lower])
    reach = np.clip((tongue[:, 2] - 0.21) / 0.15, 0, 1)
    tongue_deltas[ARKIT_INDEX["tongueOut"]] += reach[:, None] * np.array([0, 0.01, 0.094])
    eyes = (_FACECAP_EYE * np.array([[-1, 1, 1], [1, 1, 1]]) - _FACECAP_CENTRE) / _FACECAP_SCALE
    skin = triangles[part[triangles[:, 0]] == SKIN_PART]
    count, extra = len(head), len(teeth) + len(tongue)
    vertices = np.concatenate([head, teeth, tongue])
    return HeadRig(
        vertices=vertices.astype(np.float32),
        triangles=np.concatenate([triangles, teeth_triangles + count, tongue_triangles + count + len(teeth)]),
        deltas=np.concatenate([deltas, np.zeros((len(deltas), len(teeth), 3)), tongue_deltas], 1).astype(np.float32),
        part=np.concatenate([part, np.repeat([TEETH_PART, TONGUE_PART], [len(teeth), len(tongue)])]).astype(np.uint8),
        follow=np.ones(len(vertices), np.float32),
        rim=np.concatenate([lid_rims(skin, head, eyes), np.zeros(extra)]).astype(np.float32),
        eyes=eyes.astype(np.float32),
        eye_radius=float(np.ptp(eye[:, 0]) / 2 / _FACECAP_SCALE),
        neck_loop=boundary_loops(skin)[0],
        identity_modes=np.zeros((0, len(vertices), 3), np.float32),
        identity_eyes=np.zeros((0, 2, 3), np.float32),
        credit=HEAD_CREDIT,
    )


class _Glb:
    """The few parts of glTF that the packaged head uses: meshopt-compressed, quantised meshes with morph targets."""

    _TYPES: Final = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
    _WIDTHS: Final = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}

    def __init__(self, data: bytes) -> None:
        (size,) = struct.unpack_from("<I", data, 12)
        self._json: dict[str, Any] = json.loads(data[20 : 20 + size])
        self._binary = data[28 + size :]
        self._views: dict[int, NDArray[np.uint8]] = {}

    def mesh(self, index: int) -> tuple[NDArray[np.float64], IntArray, NDArray[np.float64]]:
        """Vertices, triangles and morph targets in the file's units, axes turned to the canonical ones."""
        primitive = self._json["meshes"][index]["primitives"][0]
        node = next(n for n in self._json["nodes"] if n.get("mesh") == index)
        scale, shift = np.array(node["scale"]), np.array(node["translation"])
        vertices = self._accessor(primitive["attributes"]["POSITION"]) * scale + shift
        targets = [self._accessor(target["POSITION"]) * scale for target in primitive.get("targets", [])]
        deltas = np.stack(targets) if targets else np.zeros((0, len(vertices), 3))
        triangles = self._accessor(primitive["indices"]).reshape(-1, 3).astype(np.int32)
        return _turn(vertices), triangles, _turn(deltas)

    def _view(self, index: int) -> NDArray[np.uint8]:
        if index not in self._views:
            import meshoptimizer

            packed = self._json["bufferViews"][index]["extensions"]["EXT_meshopt_compression"]
            start, count, stride = packed["byteOffset"], packed["count"], packed["byteStride"]
            raw = np.frombuffer(self._binary[start : start + packed["byteLength"]], np.uint8)
            if packed["mode"] == "ATTRIBUTES":
                decoded = meshoptimizer.decode_vertex_buffer(count, stride, raw)
            else:
                # The decoder returns 32-bit indices whatever the size in the file.
                kind = np.uint16 if stride == 2 else np.uint32
                decoded = meshoptimizer.decode_index_buffer(count, 4, raw).astype(kind)
            self._views[index] = np.ascontiguousarray(decoded).view(np.uint8).reshape(-1)
        return self._views[index]

    def _accessor(self, index: int) -> NDArray[np.float64]:
        accessor = self._json["accessors"][index]
        kind, width = np.dtype(self._TYPES[accessor["componentType"]]), self._WIDTHS[accessor["type"]]
        stride = self._json["bufferViews"][accessor["bufferView"]].get("byteStride", kind.itemsize * width)
        values: NDArray[Any] = np.ndarray(
            (accessor["count"], width),
            kind,
            self._view(accessor["bufferView"]).tobytes(),
            accessor.get("byteOffset", 0),
            (stride, kind.itemsize),
        )
        return values.astype(np.float64)


def _turn(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The file's up is -z and its front is +y."""
    return np.stack([values[..., 0], -values[..., 2], values[..., 1]], axis=-1)


def _weld(
    vertices: NDArray[np.float64], triangles: IntArray, deltas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], IntArray, NDArray[np.float64]]:
    """Joins vertices that texture seams had split, so that normals are smooth across them."""
    _, first, inverse = np.unique(np.round(vertices, 5), axis=0, return_index=True, return_inverse=True)
    return vertices[first], inverse.reshape(-1)[triangles].astype(np.int32), deltas[:, first]


def components_of(triangles: IntArray, count: int) -> IntArray:
    """[count] label of the connected piece each vertex belongs to."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, columns = triangles[:, [0, 1, 2]].ravel(), triangles[:, [1, 2, 0]].ravel()
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    labels: IntArray = connected_components(graph, directed=False)[1].astype(np.int32)
    return labels


def boundary_loops(triangles: IntArray) -> list[IntArray]:
    """Closed chains of vertices along edges that only one triangle has, longest first."""
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


def _facecap_parts(vertices: NDArray[np.float64], triangles: IntArray) -> NDArray[np.uint8]:
    labels = components_of(triangles, len(vertices))
    sizes = np.bincount(labels)
    order = np.argsort(sizes)[::-1]
    part = np.full(len(vertices), TEETH_PART, np.uint8)
    part[labels == order[0]] = SKIN_PART
    part[labels == order[1]] = MOUTH_PART
    return part


def _close_lips(vertices: NDArray[np.float64], triangles: IntArray, part: NDArray[np.uint8]) -> None:
    """Lets the lips overlap a little at rest, so that no teeth glint through the line between them (in place)."""
    loops = boundary_loops(triangles[part[triangles[:, 0]] == SKIN_PART])
    mouth = next(loop for loop in loops if abs(vertices[loop, 0].mean()) < 0.5 and vertices[loop, 1].max() < -3)
    x = vertices[mouth, 0]
    start, end = sorted((int(x.argmin()), int(x.argmax())))
    halves = (mouth[start : end + 1], np.concatenate([mouth[end:], mouth[: start + 1]]))
    lower, upper = sorted(halves, key=lambda half: float(vertices[half, 1].mean()))
    width = float(np.abs(x).max())
    for half, shift in ((lower, 0.07), (upper, -0.04)):
        vertices[half, 1] += shift * np.clip(1.3 * (1 - np.abs(vertices[half, 0]) / width), 0, 1)


def lid_rims(skin: IntArray, vertices: NDArray[np.float64], eyes: NDArray[np.float64]) -> NDArray[np.float64]:
    """How near each vertex is to an eyelid's edge, 1 on it.

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
    """A flattened dome inside the lower teeth, canonical, with its triangles."""
    rows, columns = 6, 12
    polar, azimuth = np.meshgrid(
        np.linspace(0.05, 1.75, rows), np.linspace(0, 2 * np.pi, columns, endpoint=False), indexing="ij"
    )
    x = 1.55 * np.sin(polar) * np.sin(azimuth)
    z = 2.3 + 2.3 * np.sin(polar) * np.cos(azimuth)
    y = -5.05 + 0.75 * np.cos(polar)
    points = (np.stack([x, y, z], -1).reshape(-1, 3) - _FACECAP_CENTRE) / _FACECAP_SCALE
    return points, grid_triangles(rows, columns, closed=True)


def grid_triangles(rows: int, columns: int, *, closed: bool) -> IntArray:
    """Triangles of a grid of vertices (row-major); rows go down, columns to the picture's right in front."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    right = (column + 1) % columns
    a, b = row * columns + column, row * columns + right
    c, d = a + columns, b + columns
    quads = np.stack([a, c, b, b, c, d], -1).reshape(-1, 3)
    return quads.astype(np.int32)


def follow_nearby(
    points: NDArray[np.float64], anchors: NDArray[np.float64], deltas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Offsets of points that ride along with anchors (inverse-distance weights)."""
    distance = np.linalg.norm(points[:, None] - anchors[None], axis=-1)
    weights = 1.0 / (distance**2 + 5e-4)
    weights /= weights.sum(1, keepdims=True)
    moved: NDArray[np.float64] = np.einsum("pa,kac->kpc", weights, deltas)
    return moved
