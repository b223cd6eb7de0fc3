"""Loads a head model in canonical form: the packaged facecap head or ICT-FaceKit Light.

Canonical frame: x to the image's right, y up, z towards the camera; one unit is the head's height, the chin is at
y = -0.5 and the crown at +0.5.
"""

import json
import struct
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from components.performer.head import (
    FACECAP_CENTRE,
    FACECAP_SCALE,
    MOUTH_PART,
    SKIN_PART,
    TEETH_PART,
    TONGUE_PART,
    HeadRig,
    IntArray,
    boundary_loops,
    components_of,
    follow_nearby,
    lid_rims,
    tongue_shape,
)
from components.performer.tracks import ARKIT_INDEX
from components.runtime.packaged_weights import PackagedWeights

HEAD_CREDIT: Final = (
    'Head model "facecap" by Bannaflak (Face Cap), from the three.js examples: no licence text; its author is reported '
    "to allow use with this credit."
)
"""Credit in the licence field of every recording made with the packaged head."""

_FACECAP: Final = PackagedWeights(
    package="openfacefx",
    requirement="openfacefx==0.24.0",
    member="studio_web/assets/facecap.glb",
    sha256="6bfce6d0fcbb5839f5102b79733007859fef7c5df6d9eb49e2264542810b5f64",
)


_FACECAP_EYE: Final = np.array([3.2895, 2.6122508, 2.38155508])


def load_rig(head: str = "") -> HeadRig:
    """Load a head by its name.

    Args:
        head: empty for the packaged head, else the path of an `ict_light.npz`.

    Raises:
        ValueError: the package or file is missing.
    """
    if not head:
        return _facecap()
    from components.performer.rig_ict import load_ict

    return load_ict(head)


@lru_cache(maxsize=1)
def _facecap() -> HeadRig:
    glb = _Glb(_FACECAP.path().read_bytes())
    head, triangles, deltas = _weld(*glb.mesh(2))
    part = _facecap_parts(head, triangles)
    _close_lips(head, triangles, part)
    teeth, teeth_triangles, _ = glb.mesh(3)
    # Moved slightly back and up, because the teeth would show through the closed lips of some people.
    teeth += np.array([0.0, 0.1, -0.15])
    eye, _, _ = glb.mesh(0)
    head, teeth, deltas = (
        (head - FACECAP_CENTRE) / FACECAP_SCALE,
        (teeth - FACECAP_CENTRE) / FACECAP_SCALE,
        (deltas / FACECAP_SCALE),
    )
    tongue, tongue_triangles = tongue_shape()
    lower = np.flatnonzero(part == TEETH_PART)
    tongue_deltas = follow_nearby(tongue, head[lower], deltas[:, lower])
    reach = np.clip((tongue[:, 2] - 0.21) / 0.15, 0, 1)
    tongue_deltas[ARKIT_INDEX["tongueOut"]] += reach[:, None] * np.array([0, 0.01, 0.094])
    eyes = (_FACECAP_EYE * np.array([[-1, 1, 1], [1, 1, 1]]) - FACECAP_CENTRE) / FACECAP_SCALE
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
        eye_radius=float(np.ptp(eye[:, 0]) / 2 / FACECAP_SCALE),
        neck_loop=boundary_loops(skin)[0],
        identity_modes=np.zeros((0, len(vertices), 3), np.float32),
        identity_eyes=np.zeros((0, 2, 3), np.float32),
        credit=HEAD_CREDIT,
    )


class _Glb:
    """Reader for the subset of glTF in the packaged head: meshopt-compressed, quantised meshes with morph targets."""

    _TYPES: Final = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
    _WIDTHS: Final = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}

    def __init__(self, data: bytes) -> None:
        (size,) = struct.unpack_from("<I", data, 12)
        self._json: dict[str, Any] = json.loads(data[20 : 20 + size])
        self._binary = data[28 + size :]
        self._views: dict[int, NDArray[np.uint8]] = {}

    def mesh(self, index: int) -> tuple[NDArray[np.float64], IntArray, NDArray[np.float64]]:
        """Return vertices, triangles and morph targets in the file's units, on canonical axes."""
        primitive = self._json["meshes"][index]["primitives"][0]
        node = next(n for n in self._json["nodes"] if n.get("mesh") == index)
        scale, shift = np.array(node["scale"]), np.array(node["translation"])
        vertices = self._accessor(primitive["attributes"]["POSITION"]) * scale + shift
        targets = [self._accessor(target["POSITION"]) * scale for target in primitive.get("targets", [])]
        deltas = np.stack(targets) if targets else np.zeros((0, len(vertices), 3))
        triangles = self._accessor(primitive["indices"]).reshape(-1, 3).astype(np.int32)
        return _to_canonical_axes(vertices), triangles, _to_canonical_axes(deltas)

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


def _to_canonical_axes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors [..., 3] rotated from the file's axes (up is -z, front is +y)."""
    return np.stack([values[..., 0], -values[..., 2], values[..., 1]], axis=-1)


def _weld(
    vertices: NDArray[np.float64], triangles: IntArray, deltas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], IntArray, NDArray[np.float64]]:
    """Merge vertices that texture seams split, which makes normals smooth across seams."""
    _, first, inverse = np.unique(np.round(vertices, 5), axis=0, return_index=True, return_inverse=True)
    return vertices[first], inverse.reshape(-1)[triangles].astype(np.int32), deltas[:, first]


def _facecap_parts(vertices: NDArray[np.float64], triangles: IntArray) -> NDArray[np.uint8]:
    labels = components_of(triangles, len(vertices))
    sizes = np.bincount(labels)
    order = np.argsort(sizes)[::-1]
    part = np.full(len(vertices), TEETH_PART, np.uint8)
    part[labels == order[0]] = SKIN_PART
    part[labels == order[1]] = MOUTH_PART
    return part


def _close_lips(vertices: NDArray[np.float64], triangles: IntArray, part: NDArray[np.uint8]) -> None:
    """Overlap the lips slightly at rest, in place, to hide the teeth between them."""
    loops = boundary_loops(triangles[part[triangles[:, 0]] == SKIN_PART])
    mouth = next(loop for loop in loops if abs(vertices[loop, 0].mean()) < 0.5 and vertices[loop, 1].max() < -3)
    x = vertices[mouth, 0]
    start, end = sorted((int(x.argmin()), int(x.argmax())))
    halves = (mouth[start : end + 1], np.concatenate([mouth[end:], mouth[: start + 1]]))
    lower, upper = sorted(halves, key=lambda half: float(vertices[half, 1].mean()))
    width = float(np.abs(x).max())
    for half, shift in ((lower, 0.07), (upper, -0.04)):
        vertices[half, 1] += shift * np.clip(1.3 * (1 - np.abs(vertices[half, 0]) / width), 0, 1)
