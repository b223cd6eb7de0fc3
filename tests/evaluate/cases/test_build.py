"""The benchmark set as the performer renders it: held-out people and words, one clock, kept in its cache."""

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


def test_frames_sound_and_truth_share_one_clock(rendered):
    _, bench = rendered
    assert len(bench.cases) == 4
    for case in [*bench.cases, bench.talk]:
        assert case.frames.shape == (192, 32, 32, 3)
        assert case.speak.shape == case.truth.listen.shape == (192_000,)
        assert all(getattr(case.truth, name).shape == (192,) for name in (*SIGNALS, "warmth", "state"))
        loud = np.abs(case.speak.reshape(192, 1000).astype(float)).mean(1) > 200
        assert (case.truth.state == 1)[loud].mean() > 0.8
    a, b = bench.cases[:2]
    assert a.group == b.group
    assert np.array_equal(a.speak, b.truth.listen)
    assert len(bench.probes) == 8
    assert bench.probes[0].frames.shape == (5, 32, 32, 3)


def test_a_rendered_set_is_loaded_not_rendered_again(rendered, monkeypatch):
    folder, bench = rendered
    monkeypatch.setattr(render, "render_bench", None)
    again = build_bench(folder, CONFIG, NoProgress())
    assert np.array_equal(again.talk.frames, bench.talk.frames)
    assert again.digest == bench.digest == bench_digest(CONFIG)
    assert bench_digest(dataclasses.replace(CONFIG, seed=1)) != bench.digest
