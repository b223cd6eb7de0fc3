"""Loads ICT-FaceKit Light (packed as one .npz) in canonical form: scan-based heads with 100 identity modes."""

from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from components.performer.head import (
    ICT_CREDIT,
    MOUTH_PART,
    SKIN_PART,
    TEETH_PART,
    TONGUE_PART,
    HeadRig,
    components_of,
    follow_nearby,
    lid_rims,
    tongue_shape,
)
from components.performer.tracks import ARKIT_INDEX, ARKIT_NAMES

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int32]

_VERTICES: Final = 26719
_SKIN: Final = slice(0, 11248)
_MOUTH: Final = slice(11248, 13294)
_TEETH: Final = slice(17039, 21451)
_EYES: Final = (slice(23021, 24591), slice(21451, 23021))
"""Eyeballs, image's left first."""
_NECK_END: Final = -0.74

# Heights of landmarks in the file and in the canonical frame: neck, chin, lips (lower edge, seam, upper edge), nose,
# eyes, brows, crown: aligns the features with the face paint and deformations of the canonical head.
_HEIGHTS: Final = (-19.4, -8.0, -4.65, -3.36, -2.30, -1.10, 3.615, 5.40, 14.51)
_CANONICAL: Final = (-1.03, -0.5, -0.342, -0.279, -0.228, -0.172, 0.019, 0.10, 0.5)
_SCALE: Final = 0.0446


@lru_cache(maxsize=1)
def load_ict(path: str) -> HeadRig:
    """Load the rig from an `ict_light.npz` (arrays v, d, names, tri).

    Raises:
        ValueError: the file is missing or has other content.
    """
    if not Path(path).is_file():
        raise ValueError(f"head {path} is not a file: give the path of ict_light.npz, or leave head empty")
    with np.load(path, allow_pickle=False) as archive:
        missing = {"v", "d", "names", "tri"} - set(archive.files)
        if missing or archive["v"].shape != (_VERTICES, 3):
            raise ValueError(f"{path} is not ICT-FaceKit Light: expected arrays v [{_VERTICES}, 3], d, names, tri")
        points = archive["v"].astype(np.float64)
        names = [str(name) for name in archive["names"]]
        offsets = archive["d"]
        triangles = archive["tri"].astype(np.int32)
    rest = _canonical(points)
    _fit(rest, offsets[names.index("jawOpen"), :, 1].astype(np.float64))
    keep = _visible(points, rest, triangles)
    index = np.full(_VERTICES, -1, np.int32)
    index[keep] = np.arange(len(keep), dtype=np.int32)
    visible_triangles = index[triangles[(index[triangles] >= 0).all(1)]]

    def delta(name: str, where: IntArray) -> FloatArray:
        moved = points[where] + offsets[names.index(name), where].astype(np.float64)
        return np.asarray(_canonical(moved) - _canonical(points[where]))

    shapes = np.zeros((len(ARKIT_NAMES), len(keep), 3))
    for number, name in enumerate(ARKIT_NAMES):
        for source in (name, f"{name}_L", f"{name}_R"):
            if source in names:
                shapes[number] += delta(source, keep)
    modes = [name for name in names if name.startswith("identity")]
    # Slightly smaller and further back than in the file, which lets closed lids cover them on every face.
    eyes = np.stack([(rest[part].min(0) + rest[part].max(0)) / 2 for part in _EYES]) - np.array([0, 0, 0.003])
    everywhere = [np.arange(part.start, part.stop, dtype=np.int32) for part in _EYES]
    mode_eyes = np.array([[delta(name, part).mean(0) for part in everywhere] for name in modes])
    mode_points = np.stack([delta(name, keep) for name in modes])
    return _assemble(keep, rest[keep], visible_triangles, shapes, eyes, (mode_points, mode_eyes))


def _canonical(points: FloatArray) -> FloatArray:
    from scipy.interpolate import PchipInterpolator

    height = PchipInterpolator(_HEIGHTS, _CANONICAL, extrapolate=True)(points[..., 1])
    return np.stack([points[..., 0] * _SCALE, height, (points[..., 2] - 8.0) * _SCALE + 0.247], -1)


def _fit(rest: FloatArray, jaw: FloatArray) -> None:
    """Close the lips over the teeth and tuck the file's shoulders under the clothes, in place."""
    rest[_TEETH, 2] -= 0.012
    skin = rest[_SKIN]
    lips = np.exp(-(((skin[:, 1] + 0.28) / 0.02) ** 2)) * (skin[:, 2] > 0.37)
    taper = np.clip(1.3 * (1 - np.abs(skin[:, 0]) / 0.1), 0, 1)
    skin[:, 1] += lips * taper * np.where(jaw[_SKIN] < -1.5, 0.006, -0.003)
    fraction = np.clip((-0.50 - skin[:, 1]) / 0.1, 0, 1)
    beyond = np.maximum(0, np.abs(skin[:, 0]) - 0.2)
    skin[:, 0] -= np.sign(skin[:, 0]) * beyond * fraction
    behind = np.maximum(0, -0.26 - skin[:, 2])
    skin[:, 2] += behind * fraction


def _visible(points: FloatArray, rest: FloatArray, triangles: IntArray) -> IntArray:
    """Return the vertices of skin above the collar, mouth and visible teeth."""
    chosen = np.zeros(_VERTICES, bool)
    chosen[_SKIN] = rest[_SKIN, 1] > _NECK_END
    chosen[_MOUTH] = True
    labels = components_of(triangles, _VERTICES)
    teeth = labels[_TEETH]
    front = [label for label in np.unique(teeth) if points[labels == label, 2].max() > 7.9]
    chosen[_TEETH] = np.isin(teeth, front)
    return np.flatnonzero(chosen).astype(np.int32)


def _assemble(
    keep: IntArray,
    rest: FloatArray,
    triangles: IntArray,
    shapes: FloatArray,
    eyes: FloatArray,
    modes: tuple[FloatArray, FloatArray],
) -> HeadRig:
    """Add a tongue and assemble the rig."""
    part = np.full(len(keep), SKIN_PART, np.uint8)
    part[(keep >= _MOUTH.start) & (keep < _MOUTH.stop)] = MOUTH_PART
    part[keep >= _TEETH.start] = TEETH_PART
    tongue, tongue_triangles = tongue_shape()
    tongue = tongue + np.array([0.0, -0.02, 0.01])
    jaw = shapes[ARKIT_INDEX["jawOpen"], :, 1]
    lower = np.flatnonzero((part == TEETH_PART) & (jaw < -0.03))
    tongue_shapes = follow_nearby(tongue, rest[lower], shapes[:, lower])
    tongue_modes = follow_nearby(tongue, rest[lower], modes[0][:, lower])
    # The neck stays with the shoulders, the head turns; the chin hangs before the neck and must turn with the head.
    height = rest[:, 1] + 0.6 * np.maximum(0, rest[:, 2] - 0.02)
    fraction = np.clip((height - _NECK_END) / (-0.42 - _NECK_END), 0, 1)
    follow = np.concatenate([fraction * fraction * (3 - 2 * fraction), np.ones(len(tongue))])
    rim = lid_rims(triangles[(part[triangles] == SKIN_PART).all(1)], rest, eyes)
    return HeadRig(
        vertices=np.concatenate([rest, tongue]).astype(np.float32),
        triangles=np.concatenate([triangles, tongue_triangles + len(rest)]).astype(np.int32),
        deltas=np.concatenate([shapes, tongue_shapes], 1).astype(np.float32),
        part=np.concatenate([part, np.full(len(tongue), TONGUE_PART)]).astype(np.uint8),
        follow=follow.astype(np.float32),
        rim=np.concatenate([rim, np.zeros(len(tongue))]).astype(np.float32),
        eyes=eyes.astype(np.float32),
        eye_radius=1.37 * _SCALE,
        neck_loop=np.zeros(0, np.int32),
        identity_modes=np.concatenate([modes[0], tongue_modes], 1).astype(np.float32),
        identity_eyes=modes[1].astype(np.float32),
        credit=ICT_CREDIT,
    )
