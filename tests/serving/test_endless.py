"""An hour of conversation: memory does not grow, and a trained model keeps identity and colour."""

from pathlib import Path

import numpy as np
import pytest

from components.evaluate.cases.build import build_bench
from components.evaluate.config import BenchConfig
from lpm_model.config import SAMPLES_PER_FRAME, VIDEO_FPS
from lpm_model.online import load_online
from lpm_model.progress import NoProgress
from serving.talk import stream
from tests.benchmarks._lpm_bench import LATEST
from tests.benchmarks.endless import chunks, measure
from tests.lpm_model import tiny

MINUTES = 60
MAX_RSS_GROWTH = 0.01


class Chatter:
    """Bursts of noise and pauses, generated as they are read."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._left = MINUTES * 60 * VIDEO_FPS * SAMPLES_PER_FRAME

    def read(self, count: int) -> tuple[np.ndarray, int]:
        available = min(count, self._left)
        self._left -= available
        loudness = self._random.choice((0, 3000))
        audio = (loudness * self._random.standard_normal(count)).astype(np.int16)
        audio[available:] = 0
        return audio, available


@pytest.mark.slow
def test_memory_does_not_grow_in_an_hour() -> None:
    model = tiny.online_model(tiny.online_config(chunk_latents=3))
    talk = stream(model, tiny.person(), Chatter(1), Chatter(2))
    found = measure((chunk.frames for chunk in talk), model.chunk_latents, MINUTES)
    assert found["rss_growth"] <= MAX_RSS_GROWTH
    assert found["freeze_rate"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not (LATEST / "online").is_dir(), reason="no trained model in runs/latest: run `lpm run` first")
def test_trained_model_stays_stable_for_an_hour() -> None:
    model = load_online(LATEST / "online")
    bench = build_bench(Path(".work/bench"), BenchConfig(size_px=model.size_px), NoProgress())
    found = measure(chunks(model, bench, MINUTES), model.chunk_latents, MINUTES)
    assert found["rss_growth"] <= MAX_RSS_GROWTH
    assert abs(found["identity_change"]) <= 0.02
    assert found["colour_de"] <= 2
    assert found["freeze_rate"] == 0
    assert found["sink_peak"] <= 0.6
