"""Ablation of the distillation: models distilled without one of its parts, on the same held-out cases.

`python -m tests.benchmarks.ablation [--base DIR] [--dataset DIR] [--seeds 3] [--scale 1] [--json]`. Variants: the whole
distillation, each stage skipped, the cache's sink off, the noisy history off. Sync, listening, identity and drift are
LPM-Bench's (1 is the ground truth, 0 another person's); mean and standard deviation over seeds. Finished variants are
reused: their metrics are stored in `--out`, next to the model. Variants of one seed share the teacher's trajectories,
which are stored there as well.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from components.runtime.cache_keys import config_digest
from components.runtime.progress import RichProgress
from lpm_model.character import read_model_config
from lpm_model.config import to_mapping
from lpm_model.digests import dataset_digest, model_digest
from lpm_model.files import read_json, write_json
from lpm_model.progress import Progress
from lpm_model.training.distill.config import (
    Distillation,
    DmdStage,
    OdeStage,
)
from lpm_model.training.distill.train import distill_online
from pipelines.config import load_config
from tests.benchmarks._lpm_bench import LATEST, SCORES, LpmBench, quiet, settings

STAGES = ("ode", "off_policy", "on_policy", "refiner", "long")


def whole(scale: float, seed: int) -> Distillation:
    """Return the tiny profile's distillation with every stage.

    Args:
        scale: factor of the default number of steps.
        seed: of data order and noise.
    """

    def steps(default: int) -> int:
        return max(1, round(scale * default))

    tiny: Distillation = load_config(["profile=tiny"]).distill
    return replace(
        tiny,
        online=replace(tiny.online, refiner_sigma=0.3),
        ode=replace(tiny.ode, steps=steps(40)),
        off_policy=replace(tiny.off_policy, steps=steps(4), critic_steps=2),
        on_policy=replace(tiny.on_policy, steps=steps(4), critic_steps=2),
        refiner=replace(tiny.refiner, steps=steps(4), critic_steps=2),
        long=replace(tiny.long, steps=steps(4), critic_steps=2),
        collapse_monitor=replace(tiny.collapse_monitor, every_steps=steps(4)),
        trajectories=max(8, round(scale * 48)),
        seed=seed,
    )


def variants(full: Distillation) -> dict[str, Distillation]:
    """Return every variant by its name in the table."""
    found = {"whole": full}
    for key in STAGES:
        stage: OdeStage | DmdStage = getattr(full, key)
        changes = {key: replace(stage, steps=0)}
        if key == "refiner":
            changes["online"] = replace(full.online, refiner_sigma=0.0)  # type: ignore[assignment]
        found[f"without {key}"] = replace(full, **changes)  # type: ignore[arg-type]
    found["sink off"] = replace(full, online=replace(full.online, sink_latents=0))
    found["noisy history off"] = replace(full, online=replace(full.online, history_sigma=0.0))
    return found


def run(
    name: str, variant: Distillation, base: Path, dataset: Path, out: Path, bench: LpmBench, progress: Progress
) -> dict[str, float | None]:
    """Distil and measure a variant, unless that has been done, and return its scores."""
    key = config_digest(
        {
            "settings": to_mapping(variant), "bench": to_mapping(replace(bench.config, cache="")),
            "base": model_digest(base), "dataset": dataset_digest(dataset),
        }
    )  # fmt: skip
    folder = out / f"{name.replace(' ', '-')}-{variant.seed}"
    done = folder / "ablation.json"
    if done.is_file() and read_json(done)["key"] == key:
        return dict(read_json(done)["scores"])
    if (folder / "key.txt").is_file() and (folder / "key.txt").read_text() != key:
        raise ValueError(f"{folder} belongs to another variant: choose another --out, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.txt").write_text(key)
    began = time.perf_counter()
    metrics = distill_online(base, dataset, folder, variant, progress, trajectories=out / "trajectories")
    measured = bench.online(folder, variant.seed)
    scores = measured.scores
    write_json(done, {"key": key, "scores": scores, "metrics": metrics, "seconds": time.perf_counter() - began})
    return scores


def table(found: Mapping[str, list[dict[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """Return mean and standard deviation of every score by variant; None if no run has it."""
    rows: dict[str, dict[str, float | None]] = {}
    for name, runs in found.items():
        rows[name] = {}
        for score in SCORES:
            values = [value for scores in runs if (value := scores[score]) is not None]
            rows[name][score] = statistics.fmean(values) if values else None
            rows[name][f"{score}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return rows


def show(rows: Mapping[str, Mapping[str, float | None]]) -> None:
    """Print the table."""
    print(f"{'':24}" + "".join(f"{score:>18}" for score in SCORES))
    for name, row in rows.items():
        cells = []
        for score in SCORES:
            mean, spread = row[score], row[f"{score}_std"]
            shown = "-" if mean is None else f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
            cells.append(f"{shown:>18}")
        print(f"{name:24}" + "".join(cells))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ablation", description=__doc__)
    parser.add_argument("--base", type=Path, default=LATEST / "base", help="folder of a Base LPM")
    parser.add_argument("--dataset", type=Path, default=LATEST / "dataset", help="folder that curate wrote")
    parser.add_argument("--out", type=Path, default=Path(".work/ablation"), help="models and metrics")
    parser.add_argument("--cache", type=Path, default=Path(".work/bench"), help="rendered cases")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the default steps, such as 0.1 for a check")
    parser.add_argument("--conversations", type=int, default=4, help="two cases each")
    parser.add_argument("--seconds", type=int, default=12, help="length of a case")
    parser.add_argument("--talk-seconds", type=int, default=30, help="length of the conversation behind drift")
    parser.add_argument("--only", nargs="*", help="variants; default all")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args(arguments)
    if not (given.base / "model.safetensors").is_file() or not (given.dataset / "dataset.json").is_file():
        print(f"{given.base} or {given.dataset} is missing: `lpm run` makes both; nothing was measured")
        return
    size_px = int(read_model_config(given.base)["size_px"])
    config = settings(
        size_px, conversations=given.conversations, seconds=given.seconds, talk_seconds=given.talk_seconds,
        cache=given.cache,
    )  # fmt: skip
    names = list(variants(whole(given.scale, 0)))
    unknown = sorted(set(given.only or ()) - set(names))
    if unknown:
        parser.error(f"no variant {unknown[0]!r}: choose from {', '.join(names)}")
    found: dict[str, list[dict[str, float | None]]] = {name: [] for name in given.only or names}
    quiet()
    progress = RichProgress()
    bench = LpmBench(given.base, config, progress)
    for seed in range(given.seeds):
        for name in found:
            variant = variants(whole(given.scale, seed))[name]
            print(f"{name}, seed {seed}", flush=True)
            found[name].append(run(name, variant, given.base, given.dataset, given.out, bench, progress))
    show(table(found))
    if given.json:
        print(json.dumps({"seeds": given.seeds, "scale": given.scale, "variants": table(found)}))


if __name__ == "__main__":
    main()
