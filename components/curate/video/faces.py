"""Face landmarks (MediaPipe), tracks of people by overlap, and features of mouth, eyes and head from the landmarks."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from components.curate.config import MAX_MESH_STRIDE
from components.curate.video import face_mesh
from components.curate.video.frame import DecodedFrame
from components.curate.video.image_quality import sharpness

P = ParamSpec("P")
T = TypeVar("T")

_CORNERS = {"left_outer": 263, "left_inner": 362, "right_outer": 33, "right_inner": 133, "nose": 2}
"""Mesh points at the eyes' corners and below the nose; left and right are the person's own."""
_OUTER_EYES, _INNER_EYES = (33, 263), (133, 362)
_INNER_BROWS, _OUTER_BROWS = (55, 285, 107, 336), (70, 300, 105, 334)
FEATURES = (
    "x0", "y0", "x1", "y1", "gap", "eyes", "yaw", "pitch", "roll", "smile",
    *(f"{name}_{axis}" for name in _CORNERS for axis in "xy"), "brow_inner", "brow_outer", "sharpness",
)  # fmt: skip
"""Columns of a track: face box in pixels; mouth gap, eye opening and smile in eye distances; head angles in radians
(yaw > 0 turns to the right of the image, pitch > 0 looks down, roll > 0 turns clockwise); five points in pixels;
heights of the brows' inner and outer ends above the eyes' corners in eye distances; see `image_quality.sharpness`."""
POINTS = slice(10, 10 + 2 * len(_CORNERS))
"""The five points' columns: x, y of each."""

DETECT_EVERY = 12
"""Frames (half a second) between two detections of new faces."""
_MESH_SIDE_PX = 640
_POINT = np.dtype([("begin", "V3"), ("x", "<f4"), ("_", "V1"), ("y", "<f4"), ("__", "V1"), ("z", "<f4")])
"""Layout of a mesh point in its protobuf message: tags of one byte, and floats."""
_MIN_OVERLAP = 0.25
MAX_GAP = 12
"""Longest gap in a track in frames (half a second); a face that returns later starts a new track."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, weakref_slot=True)
class Track:
    """One person in one shot; compared by identity, not by values (see `once_per_track`)."""

    start: int
    """First frame of the track in the source."""
    shot: int
    """Number of the shot."""
    values: NDArray[np.float32]
    """[frames, 23] by FEATURES; NaN rows where the face is not seen."""

    @property
    def stop(self) -> int:
        """Frame after the last."""
        return self.start + len(self.values)

    def column(self, name: str) -> NDArray[np.float32]:
        """Return one feature over the track, float32 [frames]."""
        return self.values[:, FEATURES.index(name)]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Frames on which the face is seen, bool [frames]."""
        return ~np.isnan(self.values[:, 0])

    @property
    def face_px(self) -> float:
        """Median height of the face box in pixels."""
        return float(np.nanmedian(self.column("y1") - self.column("y0")))


def once_per_track(measure: Callable[Concatenate[Track, P], T]) -> Callable[Concatenate[Track, P], T]:
    """Cache a function of a whole track, which every clip of the track calls."""
    cache: WeakKeyDictionary[Track, T] = WeakKeyDictionary()

    def cached(track: Track, /, *rest: P.args, **named: P.kwargs) -> T:
        if track not in cache:
            cache[track] = measure(track, *rest, **named)
        return cache[track]

    return cached


class FaceFinder:
    """Landmarks of every face of a frame, with the network's own tracking between frames.

    While a network tracks fewer faces than it is set to, it searches every frame for more, which costs as much as
    tracking one. So it is set to the number of faces in the shot, which a detector counts every `DETECT_EVERY` frames.
    """

    def __init__(self, max_faces: int) -> None:
        self._max_faces = max_faces
        self._meshes: dict[int, Any] = {}
        self._tracked = 0
        self._found = 0

    def reset(self) -> None:
        """Drop the faces of the last shot."""
        self._tracked = self._found = 0

    def close(self) -> None:
        """Close the networks."""
        for mesh in self._meshes.values():
            mesh.close()
        self._meshes = {}
        self.reset()

    def find(self, frame: DecodedFrame, detect: bool = True) -> list[NDArray[np.float32]]:
        """Return the features float32 [23] (see FEATURES) of every face in a frame, in pixels of the source.

        Args:
            frame: the next one of the shot.
            detect: search for new faces too; otherwise only the faces of the frame before are tracked, if any.
        """
        image = np.ascontiguousarray(frame.within(_MESH_SIDE_PX))
        if detect or not self._found:
            count = len(face_mesh.face_detector().process(image).detections or [])
            self._track(max(min(count, self._max_faces), self._found))
        if not self._tracked:
            return []
        found = face_mesh.faces_in(self._meshes[self._tracked], image)
        self._found = len(found)
        return [measure(landmarks(face, frame.size), frame) for face in found]

    def _track(self, count: int) -> None:
        """Track `count` faces from now on."""
        if count and count != self._tracked:
            if count in self._meshes:
                face_mesh.reset(self._meshes[count])
            else:
                self._meshes[count] = face_mesh.face_mesh(count)
        self._tracked = count


def landmarks(face: Any, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the mesh of one face in pixels of a frame of a size (width, height): float32 [478, 3]."""
    # Parsed from the serialised message: reading 1434 attributes one by one takes ten times as long.
    points = np.frombuffer(face.SerializeToString(), _POINT)
    return np.stack([points["x"], points["y"], points["z"]], axis=1) * np.array([*size, size[0]], np.float32)


def measure(points: NDArray[np.float32], frame: DecodedFrame) -> NDArray[np.float32]:
    """Measure the features of one face.

    Args:
        points: landmarks [478, 3] in pixels (x right, y down, z away from the camera).
        frame: the frame that shows it.

    Returns:
        float32 [23] by FEATURES.
    """
    across, down = points[263] - points[33], points[152] - points[10]
    eye_distance = float(np.linalg.norm(across)) + 1e-6
    x_axis = across / eye_distance
    down = down - x_axis * float(down @ x_axis)
    y_axis = down / (float(np.linalg.norm(down)) + 1e-6)
    opening = [
        np.linalg.norm(points[a] - points[b]) / (np.linalg.norm(points[c] - points[d]) + 1e-6)
        for a, b, c, d in ((159, 145, 33, 133), (386, 374, 362, 263))
    ]
    corners = (points[61] + points[291]) / 2
    lift = float((points[13] + points[14]) @ y_axis / 2 - corners @ y_axis)
    wide = float(np.linalg.norm(points[61] - points[291]))
    eyes = points[list(_OUTER_EYES)].mean(axis=0)
    inner = (eyes + points[list(_INNER_EYES)].mean(axis=0)) / 2 - points[list(_INNER_BROWS)].mean(axis=0)
    outer = eyes - points[list(_OUTER_BROWS)].mean(axis=0)
    box = np.concatenate([points[:, :2].min(axis=0), points[:, :2].max(axis=0)])
    return np.array(
        [
            *box,
            np.linalg.norm(points[13] - points[14]) / eye_distance,
            np.mean(opening),
            np.arctan2(x_axis[2], x_axis[0]),
            np.arctan2(y_axis[2], y_axis[1]),
            np.arctan2(x_axis[1], x_axis[0]),
            (lift + 0.5 * wide) / eye_distance,
            *points[list(_CORNERS.values()), :2].ravel(),
            inner @ y_axis / eye_distance,
            outer @ y_axis / eye_distance,
            sharpness(frame, box),
        ],
        np.float32,
    )


@dataclass(kw_only=True, slots=True)
class _OpenTrack:
    """A track that is still growing."""

    frames: list[int] = dataclasses.field(default_factory=list)
    rows: list[NDArray[np.float32]] = dataclasses.field(default_factory=list)


class Tracker:
    """Joins the faces of successive frames into tracks, one per person and shot."""

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self._open: list[_OpenTrack] = []
        self.done: list[Track] = []

    def push(self, frame: int, faces: list[NDArray[np.float32]]) -> None:
        """Add the faces of one measured frame: the best overlaps are joined first."""
        self._open.sort(key=lambda track: track.frames[0])
        live = [track for track in self._open if frame - track.frames[-1] <= MAX_GAP]
        pairs = sorted(
            ((overlap(track.rows[-1], face), i, j) for i, track in enumerate(live) for j, face in enumerate(faces)),
            key=lambda item: (-item[0], item[1], item[2]),
        )
        used_tracks: set[int] = set()
        used_faces: set[int] = set()
        for score, i, j in pairs:
            if score >= _MIN_OVERLAP and i not in used_tracks and j not in used_faces:
                live[i].frames.append(frame)
                live[i].rows.append(faces[j])
                used_tracks.add(i)
                used_faces.add(j)
        for j, face in enumerate(faces):
            # A second mesh on one face is an artefact of the network, not a person.
            twin = any(overlap(face, faces[k]) > 0.5 for k in used_faces)
            if j not in used_faces and not twin:
                self._open.append(_OpenTrack(frames=[frame], rows=[face]))

    def end_shot(self, shot: int, stop: int) -> None:
        """Close all tracks at a cut; `stop` is the frame after the shot's last."""
        closed = [close_track(track.frames, track.rows, self._stride, shot, stop) for track in self._open]
        closed.sort(key=lambda track: (track.start, float(np.nanmean(track.values[:, 0]))))
        self.done += [track for track in closed if np.any(track.seen)]
        self._open = []


def close_track(frames: list[int], rows: list[NDArray[np.float32]], stride: int, shot: int, stop: int) -> Track:
    """Return the finished track with a row per frame: linearly interpolated, NaN in long gaps."""
    last = min(frames[-1] + stride, stop)  # the frames after the last measured one repeat it
    at = np.arange(frames[0], last)
    table = np.stack(rows)
    values = np.stack([np.interp(at, frames, table[:, c]) for c in range(table.shape[1])], axis=1).astype(np.float32)
    for a, b in zip(frames[:-1], frames[1:], strict=True):
        if b - a > MAX_MESH_STRIDE:
            values[a + 1 - frames[0] : b - frames[0]] = np.nan
    return Track(start=frames[0], shot=shot, values=values)


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the intersection over union of two boxes given as their first four values (x0, y0, x1, y1)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = float(width * height)
    areas = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))
    return shared / (areas - shared)
