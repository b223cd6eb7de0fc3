"""Stability of an hour-long call: `python -m tests.benchmarks.endless [--online DIR] [--minutes 60] [--json]`.

An Online LPM generates held-out conversations back to back, without a pause and without a restart.

- last_over_second_minute: median step time of the last minute over that of the second.
- rss_growth: resident memory at the end over that after the second minute, minus one.
- identity_change, colour_de: the last minute against the first; distance (1 - cosine) of thumbnails, and in CIE Lab.
- freeze_rate: fraction of two-second windows without motion.
- sink_peak: how strongly the video keeps returning to its first frames (over 0.6: a collapse onto the cache's sink).
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil

from components.evaluate.cases.build import build_bench
from components.evaluate.cases.cases import Bench
from components.evaluate.config import BenchConfig
from components.evaluate.metrics.stability import sink_peak
from components.runtime.progress import RichProgress
from lpm_model.config import LATENT_FPS, SAMPLES_PER_LATENT, VIDEO_FPS
from lpm_model.online import OnlineModel, load_online
from serving.drift import DriftMeter, thumbnails
from serving.talk import ArraySource, stream
from tests.benchmarks._lpm_bench import LATEST

SECOND = 2
"""Reference minute: caches are full and allocators warm by its end."""
EVERY = 4
"""Frames between those whose similarity to the first frame is recorded."""


def voices(bench: Bench, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return own and partner's audio, int16 [samples]: ends of the cases in random order, so that nothing repeats."""
    rng, spans, length = np.random.default_rng(0), [], 0
    cases = [bench.talk, *bench.cases]
    while length < samples:
        case = cases[rng.integers(len(cases))]
        begin = rng.integers(case.speak.size // 2)
        spans.append((case.speak[begin:], case.ground_truth.listen[begin:]))
        length += case.speak.size - begin
    own, partner = (np.concatenate(parts)[:samples] for parts in zip(*spans, strict=True))
    return own, partner


def chunks(model: OnlineModel, bench: Bench, minutes: float) -> Iterator[np.ndarray]:
    """Yield the frames of the call, chunk by chunk."""
    samples = round(minutes * 60 * LATENT_FPS) * SAMPLES_PER_LATENT
    own, partner = voices(bench, samples)
    character = model.character(bench.talk.image, [bench.talk.reference])
    for chunk in stream(model, character, ArraySource(own), ArraySource(partner), seed=0):
        yield chunk.frames


def measure(call: Iterable[np.ndarray], chunk_latents: int, minutes: int) -> dict[str, float]:
    """Measure a call while it runs.

    Args:
        call: its frames, uint8 [n, H, W, 3], chunk by chunk.
        chunk_latents: latent frames of a chunk.
        minutes: its length.
    """
    minute, window = DriftMeter(window_s=60.0), DriftMeter()
    times: list[list[float]] = [[] for _ in range(minutes + 1)]
    rss: list[float] = []
    similar: list[np.ndarray] = []
    first: np.ndarray | None = None
    drifts, windows, frozen, seen = [], 0, 0, 0
    began = time.perf_counter()
    total = minutes * 60 * LATENT_FPS // chunk_latents
    for frames in RichProgress().track(call, "the call", total):
        times[seen // (60 * VIDEO_FPS)].append(time.perf_counter() - began)
        before, seen = seen, seen + len(frames)
        drifts += minute.add(frames)
        closed = window.add(frames)
        windows, frozen = windows + len(closed), frozen + sum(one.frozen for one in closed)
        embeddings = thumbnails(frames[-before % EVERY :: EVERY])
        first = embeddings[:1] if first is None else first
        scale = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(first)
        similar.append((embeddings @ first[0]) / np.maximum(scale, 1e-12))
        if seen // (60 * VIDEO_FPS) > before // (60 * VIDEO_FPS):
            rss.append(psutil.Process().memory_info().rss / 2**20)
        began = time.perf_counter()
    medians = [statistics.median(values) for values in times if values]
    return {
        "minutes": minutes,
        "step_ms": 1000 * medians[-1],
        "compute_seconds_per_video_second": medians[-1] * LATENT_FPS / chunk_latents,
        "last_over_second_minute": medians[minutes - 1] / medians[SECOND - 1],
        "rss_mb": rss[-1],
        "rss_growth": rss[-1] / rss[SECOND - 1] - 1,
        "identity_change": drifts[-1].identity,
        "colour_de": drifts[-1].colour_de,
        "sharpness_log2": drifts[-1].sharpness_log2,
        "freeze_rate": frozen / windows,
        "sink_peak": sink_peak(np.concatenate(similar)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.endless", description=__doc__)
    parser.add_argument("--online", type=Path, default=LATEST / "online", help="folder of an Online LPM")
    parser.add_argument("--minutes", type=int, default=3, help="length of the call, at least 3; the target is 60")
    parser.add_argument("--cache", type=Path, default=Path(".work/bench"), help="cache folder of the rendered cases")
    parser.add_argument("--compile", action="store_true", help="compiled blocks; on a GPU, CUDA graphs")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args(arguments)
    if given.minutes < SECOND + 1:
        raise SystemExit(f"--minutes is {given.minutes}: a call of at least {SECOND + 1} minutes can be compared")
    if not given.online.is_dir():
        print(f"{given.online} does not exist: run `lpm run` first, or give one with --online")
        return
    model = load_online(given.online)
    model.accelerate(compile=given.compile)
    bench = build_bench(given.cache, BenchConfig(size_px=model.size_px), RichProgress())
    figures = measure(chunks(model, bench, given.minutes), model.chunk_latents, given.minutes)
    for name, value in figures.items():
        print(f"{name:36} {value:10.4f}")
    if given.json:
        print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
