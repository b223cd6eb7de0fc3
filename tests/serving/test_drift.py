"""The drift meter: closed forms, and the same results however the frames arrive."""

import pickle
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from serving.drift import FREEZE_EPS, Drift, DriftMeter, frame_change
from serving.engine import FakeEngine
from serving.metrics import Metrics


@cache
def video_of(seed: int, frames: int) -> np.ndarray:
    """A drawn person who speaks and nods, uint8 [T, 64, 64, 3]."""
    session = FakeEngine(64).open("demo", seed)
    rng = np.random.default_rng(seed)
    voices = [(rng.normal(0, 6000, 4000)).clip(-32768, 32767).astype(np.int16) for _ in range(frames // 4)]
    return np.concatenate([session.step(v, v, "") for v in voices])


def last(*videos: np.ndarray) -> Drift:
    """The last window of these videos in sequence."""
    meter, found = DriftMeter(), []
    for video in videos:
        found += meter.add(video)
    return found[-1]


def test_still_video_does_not_drift_and_is_frozen() -> None:
    found = last(np.repeat(video_of(0, 4)[:1], 96, axis=0))
    assert found == Drift(identity=pytest.approx(0, abs=1e-6), colour_de=0, sharpness_log2=0, motion=0)
    assert found.frozen


def test_another_person_drifts_and_the_same_person_does_not() -> None:
    video = video_of(0, 144)
    same, other = last(video), last(video[:48], np.ascontiguousarray(video_of(5, 48)[..., ::-1]))
    assert not same.frozen
    assert same.motion == pytest.approx(float(frame_change(video[95:]).mean()))
    assert same.colour_de < 1
    assert other.identity > 5 * same.identity
    assert other.colour_de > 5


def test_blur_lowers_sharpness_and_brightness_moves_colour() -> None:
    video = video_of(0, 96)
    blurred = np.stack([cv2.GaussianBlur(frame, (9, 9), 3) for frame in video[48:]])
    assert last(video[:48], blurred).sharpness_log2 < -2
    grey = np.full((96, 16, 16, 3), 100, np.uint8)
    grey[48:] = 150
    first, second = (cv2.cvtColor(np.full((1, 1, 3), v / 255, np.float32), cv2.COLOR_RGB2LAB) for v in (100, 150))
    assert last(grey).colour_de == pytest.approx(float(np.linalg.norm(second - first)), rel=1e-4)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_results_do_not_depend_on_how_frames_arrive(sizes: list[int]) -> None:
    video = video_of(1, 160)
    whole, meter, at, found = DriftMeter().add(video), DriftMeter(), 0, []
    for size in [*sizes, 160]:
        found += meter.add(video[at : at + size])
        at += size
    assert len(whole) == 2
    assert found == whole


def test_given_embeddings_replace_thumbnails() -> None:
    video, points = video_of(0, 96), np.zeros((96, 2))
    points[:48, 0], points[48:, 1] = 1, 1
    assert DriftMeter().add(video, points)[0].identity == pytest.approx(1)


def test_meter_memory_is_bounded_by_one_window() -> None:
    meter, sizes = DriftMeter(), []
    for _ in range(60):
        meter.add(video_of(0, 4))
        sizes.append(len(pickle.dumps(meter)))
    assert max(sizes[24:]) <= 1.01 * max(sizes[12:24])


def test_drift_is_exported_as_metrics() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.observe_drift([Drift(identity=0.04, colour_de=2.5, sharpness_log2=0.3, motion=FREEZE_EPS / 2)])
    text = generate_latest(metrics.registry).decode()
    for line in ("lpm_drift_identity_sum 0.04", "lpm_drift_colour_de_sum 2.5", "lpm_drift_sharpness_log2_sum 0.3"):
        assert line in text
    assert 'lpm_motion_bucket{le="0.15"} 1.0' in text
