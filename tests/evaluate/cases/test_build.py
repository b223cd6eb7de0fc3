"""The rendered benchmark set: held-out people and sentences, one time base, cached."""

import dataclasses

import numpy as np
import pytest

from components.evaluate.cases import render
from components.evaluate.cases.build import bench_digest, build_bench
from components.evaluate.cases.cases import SIGNALS
from components.evaluate.config import HELD_OUT_IDENTITIES, PROBE_IDENTITIES, BenchConfig
from lpm_model.progress import NoProgress

CONFIG = BenchConfig(conversations=2, seconds=8, talk_seconds=8, probe_people=8, probe_frames=5, size_px=32)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return folder, build_bench(folder, CONFIG, NoProgress())


def test_people_and_sentences_are_held_out(rendered):
    from components.performer.dialogue import sentences

    _, bench = rendered
    people = [c.person for c in [*bench.cases, bench.talk]]
    assert len(set(people)) == 5
    assert all(HELD_OUT_IDENTITIES <= p < PROBE_IDENTITIES for p in people)
    known = [text for texts in sentences("train").values() for text in texts]
    assert not any(text in c.text for text in known for c in [*bench.cases, bench.talk])


def test_frames_audio_and_ground_truth_share_one_time_base(rendered):
    _, bench = rendered
    assert len(bench.cases) == 4
    for case in [*bench.cases, bench.talk]:
        assert case.frames.shape == (192, 32, 32, 3)
        assert case.speak.shape == case.ground_truth.listen.shape == (192_000,)
        assert all(getattr(case.ground_truth, name).shape == (192,) for name in (*SIGNALS, "warmth", "state"))
        loud = np.abs(case.speak.reshape(192, 1000).astype(float)).mean(1) > 200
        assert (case.ground_truth.state == 1)[loud].mean() > 0.8
    a, b = bench.cases[:2]
    assert a.group == b.group
    assert np.array_equal(a.speak, b.ground_truth.listen)
    assert len(bench.probes) == 8
    assert bench.probes[0].frames.shape == (5, 32, 32, 3)


def test_cached_bench_is_loaded_instead_of_rendered(rendered, monkeypatch):
    folder, bench = rendered

    def rendered_again(*_):
        raise AssertionError("the cached bench was rendered again")

    monkeypatch.setattr(render, "render_bench", rendered_again)
    again = build_bench(folder, CONFIG, NoProgress())
    assert np.array_equal(again.talk.frames, bench.talk.frames)
    assert again.digest == bench.digest == bench_digest(CONFIG)
    assert bench_digest(dataclasses.replace(CONFIG, seed=1)) != bench.digest
