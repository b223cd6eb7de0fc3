"""MediaPipe's networks without the lines that its native parts write to stderr, for which it has no setting."""

import contextlib
import functools
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHATTER = re.compile(
    rb"[IW]\d{4} [\d:.]+ +\d+ \S+:\d+\] |INFO: Created TensorFlow|WARNING: All log messages before absl"
)
"""How a line begins that tells of nothing wrong: notes and warnings of absl's log and of TensorFlow Lite."""

_SAID: list[bool] = []
"""Not empty once this process has found a face in a picture that is not square, of which it complains one time."""


@functools.cache
def face_detector() -> Any:
    """The detector that the landmark network starts with; it remembers nothing."""
    with _without_chatter():
        return _begun(_solutions().face_detection.FaceDetection(model_selection=0, min_detection_confidence=0.5))


def face_mesh(max_faces: int) -> Any:
    """A landmark network that follows so many faces from picture to picture."""
    with _without_chatter():
        return _begun(
            _solutions().face_mesh.FaceMesh(
                static_image_mode=False,
                max_num_faces=max_faces,
                refine_landmarks=True,
                min_detection_confidence=0.5,
                min_tracking_confidence=0.5,
            )
        )


def faces_in(mesh: Any, picture: NDArray[np.uint8]) -> list[Any]:
    """Landmarks of the faces that a landmark network finds in an RGB picture [H, W, 3]."""
    if _SAID:
        return mesh.process(picture).multi_face_landmarks or []
    with _without_chatter():
        found = mesh.process(picture).multi_face_landmarks or []
    if found and picture.shape[0] != picture.shape[1]:
        _SAID.append(True)
    return found


def begin_anew(mesh: Any) -> None:
    """Have a landmark network forget the faces that it follows."""
    with _without_chatter():
        mesh.reset()
        _begun(mesh)


def _begun(network: Any) -> Any:
    """A network whose threads have all started and said what they have to: they do so with the first picture."""
    network.process(np.zeros((64, 64, 3), np.uint8))
    return network


@functools.cache
def _solutions() -> Any:
    from google.protobuf import message_factory

    # The bindings ask for this method, which protobuf 5 removed, and print an error where it is missing.
    factory: Any = message_factory.MessageFactory
    factory.GetPrototype = lambda _, descriptor: message_factory.GetMessageClass(descriptor)
    # Its module for microphones keeps the error of a missing library for ever, and with it whatever the callers of this
    # import hold: the sound of the first source. A thread of its own has no callers.
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(importlib.import_module, "mediapipe").result().solutions


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Whatever is written to stderr meanwhile comes afterwards, but for chatter. Not for two threads at once."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            with open(2, "wb", closefd=False) as out:
                out.writelines(line for line in said if not _CHATTER.match(line))
