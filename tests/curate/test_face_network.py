"""The face network gives what dlib's own gives."""

import cv2
import numpy as np
import pytest

from components.curate import identity

dlib = pytest.importorskip("dlib")
if not identity.available():
    pytest.skip("the weights are not installed", allow_module_level=True)


def test_a_face_has_the_embedding_that_dlib_gives_it() -> None:
    rng = np.random.default_rng(3)
    picture = cv2.resize(rng.integers(0, 255, (24, 40, 3)).astype(np.uint8), (640, 384), interpolation=cv2.INTER_CUBIC)
    row = np.zeros(22, np.float32)
    row[identity.POINTS] = np.array([400, 180, 350, 183, 250, 190, 300, 187, 326, 250]) + rng.normal(0, 6, 10)
    peer = dlib.face_recognition_model_v1(str(identity._WEIGHTS.path()))
    points = [dlib.point(round(float(x)), round(float(y))) for x, y in row[identity.POINTS].reshape(-1, 2)]
    face = dlib.full_object_detection(dlib.rectangle(0, 0, 640, 384), points)
    want = np.array(peer.compute_face_descriptor(picture, face, 0, 0.25))
    got = identity.embed(picture, row)
    assert got is not None
    assert np.linalg.norm(want) > 1.0
    np.testing.assert_allclose(got, want, atol=1e-5)
