"""Landmarks are parsed from their serialised message."""

import numpy as np
import pytest

from components.curate.video.faces import landmarks

formats = pytest.importorskip("mediapipe.framework.formats.landmark_pb2")


def test_landmarks_equal_the_message_attributes() -> None:
    numbers = np.random.default_rng(0).normal(0.5, 0.3, (478, 3)).astype(np.float32)
    numbers[5] = 0.0
    points = [formats.NormalizedLandmark(x=float(x), y=float(y), z=float(z)) for x, y, z in numbers]
    found = landmarks(formats.NormalizedLandmarkList(landmark=points), (80, 50))
    assert np.array_equal(found, numbers * np.array([80, 50, 80], np.float32))
