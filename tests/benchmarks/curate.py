"""How fast films are curated: `python -m tests.benchmarks.curate [--json] [--seconds N] [--long]`.

Two films of real talking people, at 720p and at 1080p, in two processes. The peer is decoding alone: the same files, as
many processes, no conversion. What two Ray workers gain over one is to be read against `decode_two_over_one`, what two
processes that decode gain over one: the machine's own limit. `--long` measures the memory of both passes over a film of
two hours, and nothing else.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from components.curate.config import CurationConfig, StateConfig
from components.curate.run import partial_results as parts
from components.curate.run import passes
from components.curate.run.executor import Executor
from components.dataset.sources import Source, read_sources
from tests.benchmarks._film import films
from tests.curate.corpus import make_raw

PROCESSES = 2
LONG_S, LONG_STRIDE = 7200.0, 6
"""The long film, and every how many frames faces are looked for in it: memory does not depend on that, time does."""
WARM_S, WARM_FILMS = 4.0, 2
"""Length of the film with which each worker is warmed, and how often it is."""
SIZES = {720: "", 1080: "_1080p"}
"""Heights of the films (pixels), and how the names of their figures end."""
LIMITS = {
    "speed_over_decode_only": 1 / 3,
    "speed_over_decode_only_1080p": 1 / 3,
    "ray_two_workers_over_one": 1.7,
    "peak_rss_mb": 1536.0,
}


def decode(path: Path) -> int:
    """Pictures of a file, decoded on one thread and thrown away."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def decode_s(paths: list[Path], processes: int = PROCESSES) -> float:
    """Seconds to decode all files side by side; the processes are started before."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(decode, paths[:1] * processes))
        started = time.perf_counter()
        list(pool.map(decode, paths))
        return time.perf_counter() - started


def curate_s(paths: list[Path], executor: str, workers: int) -> float:
    """Seconds of both passes over files, from the moment on which every worker has done a first, short one.

    So neither the start of processes nor what is loaded once in each of them is in it, wherever the executor keeps its
    workers between passes and wherever it does not.
    """
    # The films repeat themselves, which makes a chance likeness of lips and late sound look sure.
    states = StateConfig(av_offset="keep")
    config = CurationConfig(executor=executor, workers=workers, min_retention=0.0, states=states)
    total_s = 0.0
    with tempfile.TemporaryDirectory() as home, Executor(executor, workers) as pool:
        warm = _jobs(Path(home) / "warm", films(WARM_S)[:1] * WARM_FILMS * workers, config)
        jobs = warm + _jobs(Path(home) / "real", paths, config)
        for stage in (parts.LOOK, parts.CLIPS):
            done = pool.map(passes.task(stage, config.limits), jobs)
            outcomes = [next(done) for _ in warm]
            started = time.perf_counter()
            outcomes += done
            total_s += time.perf_counter() - started
            assert all(outcome["ok"] for _, outcome in outcomes), outcomes
    return total_s


def _jobs(home: Path, paths: list[Path], config: CurationConfig) -> list[passes.Job]:
    """Work on a corpus of these files; one may be there several times."""
    home.mkdir()
    copies = [home / f"{number}-{path.name}" for number, path in enumerate(paths)]
    for path, copy in zip(paths, copies, strict=True):
        copy.symlink_to(path.resolve())
    raw = make_raw(home / "raw", copies)
    return [_job(raw, home / "parts", source, config) for source in read_sources(raw)]


def _job(raw: Path, parts: Path, source: Source, config: CurationConfig) -> passes.Job:
    """Both passes over one source, with room for its pictures between them."""
    room = config.keep_pictures_gb * 1e9
    return passes.Job(raw=raw, parts=parts, source=source, config=config, key="benchmark", cutout_bytes=room)


def speed(paths: list[Path]) -> float:
    """Seconds of decoding alone over seconds of curation, of as many films as processes."""
    before, ours, after = decode_s(paths), curate_s(paths, "process", PROCESSES), decode_s(paths)
    print(f"{paths[0].stem} and others: decoding alone {(before + after) / 2:.1f} s, curation {ours:.1f} s", flush=True)
    return (before + after) / 2 / ours


def peak_rss_mb(film: Path, config: CurationConfig) -> float:
    """Highest resident memory of both passes over one film (MiB)."""
    with tempfile.TemporaryDirectory() as home:
        raw = make_raw(Path(home) / "raw", [film])
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(curate_alone, raw, Path(home) / "parts", config).result()


def curate_alone(raw: Path, parts: Path, config: CurationConfig) -> float:
    """Both passes in this process; its peak memory (MiB)."""
    import resource

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    job = _job(raw, parts, read_sources(raw)[0], config)
    for function in (passes.look, passes.clips):
        outcome = function(job)
        assert outcome["ok"], outcome
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{function.__name__}: {outcome['seconds']:.0f} s, memory up to {peak_mb:.0f} MiB", flush=True)
    return peak_mb


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each film")
    parser.add_argument("--long", action="store_true", help="memory on a film of two hours alone")
    parser.add_argument("--no-ray", action="store_true", help="leave Ray out")
    arguments = parser.parse_args()
    if arguments.long:
        config = CurationConfig(min_retention=0.0, mesh_stride=LONG_STRIDE)
        print(f"a film of two hours: {peak_rss_mb(films(LONG_S)[0], config):.0f} MiB")
        return
    found = {f"speed_over_decode_only{name}": speed(films(arguments.seconds, px)) for px, name in SIZES.items()}
    paths = films(arguments.seconds)
    if not arguments.no_ray:
        found["decode_two_over_one"] = decode_s(paths * 4, 1) / decode_s(paths * 4, 2)
        found["ray_two_workers_over_one"] = curate_s(paths * 2, "ray", 1) / curate_s(paths * 2, "ray", 2)
    found["peak_rss_mb"] = peak_rss_mb(paths[0], CurationConfig(min_retention=0.0))
    print(f"{os.cpu_count()} cores, {len(paths)} films of {arguments.seconds:g} s, {PROCESSES} processes")
    for name, value in found.items():
        print(f"{name:<28}{value:>9.3f}{f'   required {LIMITS[name]:.3f}' if name in LIMITS else ''}")
    if arguments.json:
        print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
