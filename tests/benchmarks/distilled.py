"""What distillation preserves and saves: Online LPM compared with its Base LPM, on the same held-out cases.

`python -m tests.benchmarks.distilled [--base DIR] [--online DIR] [--steps 30] [--guidance 2] [--json]`.

- sync_kept, listening_kept: Online's LPM-Bench score (1 is the ground truth, 0 another person's) over Base's.
- speed_over_base: Base's compute time over Online's; Base runs `--steps` Euler steps of two passes each.
"""

import argparse
import json
from pathlib import Path

from components.runtime.progress import RichProgress
from lpm_model.character import read_model_config
from tests.benchmarks._lpm_bench import LATEST, LpmBench, Measured, settings

KEPT = ("sync", "listening")


def compared(base: Measured, online: Measured) -> dict[str, float | None]:
    """Return all metrics."""
    figures: dict[str, float | None] = {}
    for name in KEPT:
        before, after = base.scores[name], online.scores[name]
        figures |= {f"base_{name}": before, f"online_{name}": after}
        figures[f"{name}_kept"] = after / before if before and after is not None else None
    figures["base_seconds_per_video_second"] = base.seconds_per_video_second
    figures["online_seconds_per_video_second"] = online.seconds_per_video_second
    figures["speed_over_base"] = base.seconds_per_video_second / online.seconds_per_video_second
    return figures


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.distilled", description=__doc__)
    parser.add_argument("--base", type=Path, default=LATEST / "base", help="folder of a Base LPM")
    parser.add_argument(
        "--online", type=Path, default=LATEST / "online", help="folder of the Online LPM distilled from it"
    )
    parser.add_argument("--cache", type=Path, default=Path(".work/bench"), help="rendered cases")
    parser.add_argument("--steps", type=int, default=30, help="Base's Euler steps")
    parser.add_argument("--guidance", type=float, default=2.0, help="Base's guidance; above 1 each step is two passes")
    parser.add_argument("--conversations", type=int, default=4, help="two cases each")
    parser.add_argument("--seconds", type=int, default=12, help="length of a case")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args(arguments)
    if not all((folder / "model.safetensors").is_file() for folder in (given.base, given.online)):
        print(f"{given.base} or {given.online} is missing: `lpm run` makes both; nothing was measured")
        return
    config = settings(
        int(read_model_config(given.base)["size_px"]), conversations=given.conversations, seconds=given.seconds,
        talk_seconds=given.seconds, cache=given.cache, base_steps=given.steps, guidance=given.guidance,
    )  # fmt: skip
    bench = LpmBench(given.base, config, RichProgress())
    online = bench.online(given.online)
    figures = compared(bench.base(given.base), online)
    for name, value in figures.items():
        print(f"{name:36} {'-' if value is None else round(value, 4):>10}")
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
