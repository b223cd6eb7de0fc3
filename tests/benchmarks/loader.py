"""Throughput of the data loader compared with the training that it feeds: `python -m tests.benchmarks.loader [--json]`.

The batches of the tiny profile from shards of the demo's shape, loaded alone and loaded by the tiny profile's training,
alternately in one process. Every round starts with empty caches of clips and audio features; `warm` is the loader once
more with both filled.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from components.dataset.shards import write_shards
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.sampler import BaseModel
from lpm_model.training.base.train import BaseModule, clip_batches
from lpm_model.training.engine.checkpoints import CheckpointFile
from lpm_model.training.engine.loop import run
from lpm_model.training.engine.shard_reader import read_clips
from pipelines.config import load_config

CLIPS, LATENTS, GRID = 325, 24, 16
STEPS, ROUNDS = 16, 3
SETTINGS = replace(load_config(["profile=tiny"]).train, checkpoint_steps=10**9)


def write_dataset(folder: Path) -> None:
    """Write clips of noise, as many and as long as in the demo."""
    draw = np.random.default_rng(0)
    samples = 4000 * (LATENTS - 1)

    def clips() -> Iterator[tuple[str, dict[str, object]]]:
        for number in range(CLIPS):
            yield f"clip{number:04d}", {
                "latents": draw.standard_normal((16, LATENTS, GRID, GRID), np.float32).astype(np.float16),
                "references": draw.standard_normal((4, 16, GRID, GRID), np.float32).astype(np.float16),
                "speak": draw.integers(-3000, 3000, samples).astype(np.int16),
                "listen": draw.integers(-3000, 3000, samples).astype(np.int16),
                "json": {"caption": "a woman speaks", "reference_kinds": ["global", "view_0", "view_1", "view_2"]},
            }  # fmt: skip

    write_shards(folder / "shards", clips(), 64)
    (folder / "dataset.json").write_text("{}")


def measure_round(dataset: Path, state: Path) -> dict[str, float]:
    """Measure batches per second of loader, warm loader and training."""
    base = BaseModel(SETTINGS.model, load_autoencoder(None), 8 * GRID)
    batches = clip_batches(read_clips(dataset), base, SETTINGS, 0)
    batches.steps = range(STEPS)
    rates = {}
    for name in ("loader", "warm"):
        start = time.perf_counter()
        for _ in batches:
            pass
        rates[name] = STEPS / (time.perf_counter() - start)
    fresh = clip_batches(read_clips(dataset), base, SETTINGS, 0)
    fresh.steps = range(STEPS + 1)
    ends: list[float] = []

    class Timed:
        def track(self, items, _about, _total=None, _done=0):  # type: ignore[no-untyped-def]
            for item in items:
                yield item
                ends.append(time.perf_counter())

    module, checkpoint = BaseModule(base, SETTINGS, 0), CheckpointFile(state)
    run(module, fresh, STEPS + 1, checkpoint, 10**9, description="", progress=Timed())
    rates["training"] = STEPS / (ends[-1] - ends[0])  # the first step allocates
    return rates


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="lpm-loader-") as place:
        write_dataset(Path(place) / "dataset")
        rounds = [measure_round(Path(place) / "dataset", Path(place) / "checkpoint") for _ in range(ROUNDS)]
    rate = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {CLIPS} clips of "
        f"{LATENTS} latent frames, {STEPS} steps, median of {ROUNDS} rounds"
    )
    for name in ("loader", "warm", "training"):
        print(f"{name:<24}{rate[name]:>9.2f} batches/s")
    figures = {
        "loader_batches_per_s": rate["loader"],
        "warm_loader_batches_per_s": rate["warm"],
        "training_batches_per_s": rate["training"],
        "loader_over_training": rate["loader"] / rate["training"],
    }
    print(f"{'loader_over_training':<24}{figures['loader_over_training']:>9.1f}")
    if arguments.json:
        print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
