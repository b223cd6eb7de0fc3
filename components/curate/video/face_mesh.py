"""MediaPipe's networks, with the log lines of its native code filtered from stderr (it has no setting for them)."""

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

_LOG_LINE = re.compile(
    rb"[IW]\d{4} [\d:.]+ +\d+ \S+:\d+\] |INFO: Created TensorFlow|WARNING: All log messages before absl"
)
"""Beginnings of harmless lines: info and warnings of absl's log and of TensorFlow Lite."""

_WARNED: list[bool] = []
"""Not empty once this process has found a face in an image that is not square, about which MediaPipe warns once."""


@functools.cache
def face_detector() -> Any:
    """Return the detector that the landmark network starts with; it has no state."""
    with _filtered_stderr():
        return _warmed_up(_solutions().face_detection.FaceDetection(model_selection=0, min_detection_confidence=0.5))


def face_mesh(max_faces: int) -> Any:
    """Return a landmark network that tracks `max_faces` faces from frame to frame."""
    with _filtered_stderr():
        return _warmed_up(
            _solutions().face_mesh.FaceMesh(
                static_image_mode=False,
                max_num_faces=max_faces,
                refine_landmarks=True,
                min_detection_confidence=0.5,
                min_tracking_confidence=0.5,
            )
        )


def faces_in(mesh: Any, image: NDArray[np.uint8]) -> list[Any]:
    """Return the landmarks of the faces that a landmark network finds in an RGB image [H, W, 3]."""
    if _WARNED:
        return mesh.process(image).multi_face_landmarks or []
    with _filtered_stderr():
        found = mesh.process(image).multi_face_landmarks or []
    if found and image.shape[0] != image.shape[1]:
        _WARNED.append(True)
    return found


def reset(mesh: Any) -> None:
    """Make a landmark network drop the faces that it tracks."""
    with _filtered_stderr():
        mesh.reset()
        _warmed_up(mesh)


def _warmed_up(network: Any) -> Any:
    """Run a network once, because its threads start and write log lines with the first image; return it."""
    network.process(np.zeros((64, 64, 3), np.uint8))
    return network


@functools.cache
def _solutions() -> Any:
    from google.protobuf import message_factory

    # The bindings call this method, which protobuf 5 removed, and print an error where it is missing.
    factory: Any = message_factory.MessageFactory
    factory.GetPrototype = lambda _, descriptor: message_factory.GetMessageClass(descriptor)
    # Its microphone module retains the exception of a missing library, whose traceback keeps all importing stack frames
    # alive, including the audio of the first source. A separate thread has no such frames.
    with ThreadPoolExecutor(1) as importer:
        return importer.submit(importlib.import_module, "mediapipe").result().solutions


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Buffer stderr and write it afterwards without log lines. Not thread-safe."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            with open(2, "wb", closefd=False) as out:
                out.writelines(line for line in captured if not _LOG_LINE.match(line))
