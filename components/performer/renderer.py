"""Renders people: a person (Identity) and their motion (Tracks) in, frames out."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from components.performer import raster
from components.performer.head import HeadRig
from components.performer.identity import Identity
from components.performer.mesh import Mesh, display_curve
from components.performer.rig import load_rig
from components.performer.scene import Scene, build_scene
from components.performer.tracks import ARKIT_INDEX, Tracks

FloatArray = NDArray[np.float32]

CAMERA_DISTANCE: Final = 4.4
"""Head heights between the camera and the middle of the head."""
HEAD_FRACTION: Final = 0.62
"""Fraction of the image's height from chin to crown."""
CENTRE_HEIGHT: Final = 0.47
"""Vertical position of the middle of the head, as a fraction of the image's height from the top."""
PIVOT: Final = np.array([0.0, -0.36, -0.12], np.float32)
"""Pivot of the head on the neck."""

_NO_TEXTURE: Final = np.ones((2, 2, 3), np.float32)
_NO_EYE: Final = np.ones((5, 3), np.float32)
_STILL: Final = np.eye(3, dtype=np.float32)
_ORIGIN: Final = np.zeros(3, np.float32)


class Renderer:
    """Renders heads with shoulders on the CPU; not thread-safe, use one instance per thread.

    Example:
        >>> frames = Renderer(size_px=128).render(Identity.from_seed(3), Tracks.rest(24))
        >>> frames.shape
        (24, 128, 128, 3)
    """

    def __init__(self, size_px: int = 128, head: str = "") -> None:
        """Prepare a renderer.

        Args:
            size_px: width and height of the frames.
            head: empty for the packaged head, else the path of an `ict_light.npz`.

        Raises:
            ValueError: the size is out of range or the head is missing.
        """
        if not 16 <= size_px <= 2048:
            raise ValueError(f"size_px is {size_px}: choose 16..2048")
        self.size_px = size_px
        self.rig: HeadRig = load_rig(head)
        samples = size_px * raster.SUPERSAMPLING
        focal = HEAD_FRACTION * samples * CAMERA_DISTANCE
        self._camera = np.array([CAMERA_DISTANCE, focal, samples / 2, CENTRE_HEIGHT * samples, 0.0], np.float32)
        self._curve = display_curve()
        self._depth = np.zeros((samples, samples), np.float32)
        self._image = np.zeros((samples, samples, 3), np.float32)
        self._stage = lru_cache(maxsize=4)(self._prepare_scene)

    def render(self, identity: Identity, tracks: Tracks) -> NDArray[np.uint8]:
        """Render one person.

        Args:
            identity: who.
            tracks: motion of T frames at any frame rate.

        Returns:
            uint8 [T, size_px, size_px, 3], sRGB.
        """
        out = np.empty((len(tracks), self.size_px, self.size_px, 3), np.uint8)
        stage = self._stage(identity)
        for frame in range(len(tracks)):
            self._draw(stage, tracks, frame)
            raster.resolve(self._image, self._curve, out[frame])
        return out

    def render_iter(self, identity: Identity, tracks: Tracks, batch: int = 24) -> Iterator[NDArray[np.uint8]]:
        """Render in batches of at most `batch` frames, for long tracks."""
        if batch < 1:
            raise ValueError(f"batch is {batch}: choose 1 or more frames")
        for start in range(0, len(tracks), batch):
            yield self.render(identity, tracks.window(start, min(start + batch, len(tracks))))

    def _prepare_scene(self, identity: Identity) -> "_SceneBuffers":
        scene = build_scene(self.rig, identity, len(self._depth))
        depth, image = np.zeros_like(self._depth), scene.wall.copy()
        still = _MeshBuffers(scene.still, two_sided=True)
        still.pose(_STILL, _ORIGIN, self._camera, scene.light)
        still.fill(depth, image)
        return _SceneBuffers(scene, depth, image)

    def _draw(self, stage: "_SceneBuffers", tracks: Tracks, frame: int) -> None:
        scene, head = stage.scene, stage.head
        rotation, moved = rotation_matrix(tracks.rotation[frame]), tracks.translation[frame]
        weights = _with_lids(tracks.blendshapes[frame], tracks.gaze[frame])
        depth, image = self._depth, self._image
        image[:] = stage.image
        depth[:] = stage.depth
        raster.blend(scene.head.vertices, scene.delta_starts, scene.delta_vertices, scene.deltas, weights, head.rest)
        raster.normals(head.rest, scene.head.triangles, head.rest_normal)
        head.pose(rotation, moved, self._camera, scene.light)
        for triangles, kind, cull in scene.layers:
            raster.fill(
                head.screen, head.colour, scene.texels, triangles, kind, cull, scene.texture, _NO_EYE, depth, image
            )
        if stage.worn is not None:
            stage.worn.pose(rotation, moved, self._camera, scene.light)
            stage.worn.fill(depth, image)
        eyes = stage.eyes
        eyes.pose(rotation, moved, self._camera, scene.light)
        # Eye colours are computed per sample from the direction; keep only the light on them.
        eyes.colour[:, 1] = eyes.colour.mean(1)
        eyes.colour[:, 0] = eyes.normal[:, 0]
        eyes.extra[:] = eyes.normal[:, 1:]
        eye = scene.eye.copy()
        eye[0] = rotation @ _gaze_direction(tracks.gaze[frame])
        raster.fill(
            eyes.screen,
            eyes.colour,
            eyes.extra,
            scene.eyes.triangles,
            raster.EYE,
            True,
            _NO_TEXTURE,
            eye,
            depth,
            image,
        )


class _MeshBuffers:
    """A mesh with the buffers of its posed vertices."""

    def __init__(self, mesh: Mesh, *, two_sided: bool) -> None:
        self.mesh = mesh
        self.two_sided = two_sided
        self.rest = mesh.vertices.copy()
        self.rest_normal = mesh.normals()
        self.position = np.empty_like(self.rest)
        self.normal = np.empty_like(self.rest)
        self.screen = np.empty_like(self.rest)
        self.colour = np.empty_like(self.rest)
        self.extra = np.zeros((len(self.rest), 2), np.float32)

    def pose(self, rotation: FloatArray, moved: FloatArray, camera: FloatArray, light: FloatArray) -> None:
        """Rotate, project and light the mesh."""
        mesh = self.mesh
        raster.place(self.rest, self.rest_normal, mesh.follow, rotation, PIVOT, moved, self.position, self.normal)
        raster.project(self.position, camera, self.screen)
        raster.shade(
            self.position, self.normal, mesh.albedo, mesh.gloss, mesh.occlusion, light, self.two_sided, self.colour
        )

    def fill(self, depth: FloatArray, image: FloatArray) -> None:
        """Draw the posed mesh in its own colours, both sides."""
        raster.fill(
            self.screen, self.colour, self.extra, self.mesh.triangles, raster.PLAIN, False, _NO_TEXTURE, _NO_EYE,
            depth, image,
        )  # fmt: skip


class _SceneBuffers:
    """A scene with its buffers, in which everything static is already drawn."""

    def __init__(self, scene: Scene, depth: FloatArray, image: FloatArray) -> None:
        self.scene = scene
        self.depth = depth
        self.image = image
        self.head = _MeshBuffers(scene.head, two_sided=False)
        self.eyes = _MeshBuffers(scene.eyes, two_sided=False)
        self.worn = _MeshBuffers(scene.worn, two_sided=True) if scene.worn is not None else None


def rotation_matrix(angles: FloatArray) -> FloatArray:
    """Return the [3, 3] rotation by pitch, yaw, roll (radians): roll first, then pitch, then yaw."""
    pitch, yaw, roll = (float(angle) for angle in angles)
    cx, sx, cy, sy, cz, sz = (f(a) for a in (pitch, yaw, roll) for f in (math.cos, math.sin))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_y @ about_x @ about_z, np.float32)


def _gaze_direction(gaze: FloatArray) -> FloatArray:
    yaw, pitch = float(gaze[0]), float(gaze[1])
    return np.array([math.sin(yaw) * math.cos(pitch), -math.sin(pitch), math.cos(yaw) * math.cos(pitch)], np.float32)


def _with_lids(blendshapes: FloatArray, gaze: FloatArray) -> FloatArray:
    """Make the lids follow the gaze at least as far as the eyeballs turn (full shape at 0.5 rad)."""
    weights = blendshapes.copy()
    yaw, pitch = float(gaze[0]) / 0.5, float(gaze[1]) / 0.5
    for name, value in (
        ("eyeLookDown_L", pitch), ("eyeLookDown_R", pitch), ("eyeLookUp_L", -pitch), ("eyeLookUp_R", -pitch),
        ("eyeLookOut_L", yaw), ("eyeLookIn_R", yaw), ("eyeLookIn_L", -yaw), ("eyeLookOut_R", -yaw),
    ):  # fmt: skip
        index = ARKIT_INDEX[name]
        # A closed lid stays closed whatever the gaze.
        opened = 1.0 - min(1.0, max(0.0, float(blendshapes[ARKIT_INDEX["eyeBlink" + name[-2:]]])))
        weights[index] = max(weights[index], min(1.0, value) * opened)
    return weights
