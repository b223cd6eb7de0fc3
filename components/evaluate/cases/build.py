"""The benchmark set: held-out people who say held-out sentences to each other, with ground truth for every frame.

Input: a BenchConfig. Output: a cached folder with the cases, one long conversation, and clips of other people on whom
the probes are fitted. None of it is used for training.
"""

from pathlib import Path
from typing import Any

import numpy as np

from components.evaluate.cases.cases import SIGNALS, Bench, Case, GroundTruth, ProbeClip
from components.evaluate.config import BenchConfig
from components.runtime.cache_keys import code_digest, config_digest, package_versions
from lpm_model.config import to_mapping
from lpm_model.files import read_json, staged, write_json
from lpm_model.progress import Progress

RENDERER = "components.evaluate.cases.render"
"""Module that renders the set, imported only when the set is not cached."""


def bench_digest(config: BenchConfig) -> str:
    """Return the hex digest of the configuration, and of the code and the packages that render the set."""
    values = {"config": to_mapping(config), "code": code_digest(RENDERER), "packages": package_versions(RENDERER)}
    return config_digest(values)


def build_bench(out: Path, config: BenchConfig, progress: Progress) -> Bench:
    """Load the benchmark set from the cache, or render it.

    Args:
        out: cache folder; the set is stored in a folder named after its digest.
        config: what to render.
        progress: progress bar.
    """
    digest = bench_digest(config)
    folder = out / digest[:16]
    if not (folder / "bench.json").is_file():
        from components.evaluate.cases.render import render_bench

        bench = render_bench(config, digest, progress)
        with staged(folder) as work:
            save_bench(bench, work)
    return load_bench(folder)


def save_bench(bench: Bench, folder: Path) -> None:
    """Write the set as one .npz per case and one for the probe people."""
    for case in [*bench.cases, bench.talk]:
        np.savez(
            folder / f"{case.name}.npz",
            image=case.image,
            reference=case.reference,
            frames=case.frames,
            speak=case.speak,
            state=case.ground_truth.state,
            warmth=case.ground_truth.warmth,
            listen=case.ground_truth.listen,
            **{name: getattr(case.ground_truth, name) for name in SIGNALS},
        )
    arrays: dict[str, Any] = {"frames": np.stack([p.frames for p in bench.probes])}
    arrays |= {name: np.stack([p.signals[name] for p in bench.probes]) for name in SIGNALS}
    np.savez(folder / "probes.npz", **arrays)
    described = [
        {"name": c.name, "group": c.group, "person": c.person, "text": c.text} for c in [*bench.cases, bench.talk]
    ]
    write_json(folder / "bench.json", {"digest": bench.digest, "cases": described})


def load_bench(folder: Path) -> Bench:
    """Load a set that `save_bench` wrote."""
    described = read_json(folder / "bench.json")
    cases = [_load_case(folder / f"{d['name']}.npz", d) for d in described["cases"]]
    with np.load(folder / "probes.npz") as file:
        stacks = {name: file[name] for name in ("frames", *SIGNALS)}
    probes = [
        ProbeClip(frames=stacks["frames"][i], signals={n: stacks[n][i] for n in SIGNALS})
        for i in range(len(stacks["frames"]))
    ]
    return Bench(cases=cases[:-1], talk=cases[-1], probes=probes, digest=described["digest"])


def _load_case(path: Path, described: dict[str, Any]) -> Case:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    ground_truth = GroundTruth(**{name: arrays.pop(name) for name in (*SIGNALS, "state", "warmth", "listen")})
    return Case(ground_truth=ground_truth, **arrays, **described)
