"""Speed and memory of curation: `python -m tests.benchmarks.curate [--json] [--seconds N] [--long]`.

Two videos of real talking people, at 720p and at 1080p, in two processes. The baseline is decoding alone: the same
files, as many processes, no conversion. Compare the speed-up of two Ray workers with `decode_two_over_one`, that of two
decoding processes: the machine's limit. `--long` measures only the memory of both passes over a video of two hours.
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
from components.curate.run.analysis_pass import analyse_source, analysis_task
from components.curate.run.clip_pass import clip_task, cut_source
from components.curate.run.executor import Executor
from components.curate.run.job import Job
from components.dataset.sources import Source, read_sources
from tests.benchmarks._videos import talking_videos
from tests.curate.corpus import make_raw

PROCESSES = 2
LONG_S, LONG_STRIDE = 7200.0, 6
"""Length of the long video, and its stride of face measurements, which affects time but not memory."""
WARM_UP_S, WARM_UP_VIDEOS = 4.0, 2
"""Length of the videos with which each worker is warmed up, and their number."""
SIZES = {720: "", 1080: "_1080p"}
"""Heights of the videos (px), and the suffixes of their results."""
LIMITS = {
    "speed_over_decode_only": 1 / 3,
    "speed_over_decode_only_1080p": 1 / 3,
    "ray_two_workers_over_one": 1.7,
    "peak_rss_mb": 1536.0,
}


def decode(path: Path) -> int:
    """Decode a file on one thread; return its number of frames."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def decode_s(paths: list[Path], processes: int = PROCESSES) -> float:
    """Return the seconds to decode all files in parallel, without the start of the processes."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(decode, paths[:1] * processes))
        started = time.perf_counter()
        list(pool.map(decode, paths))
        return time.perf_counter() - started


def curate_s(paths: list[Path], executor: str, workers: int) -> float:
    """Return the seconds of both passes over files, after every worker has processed short videos.

    So they exclude the start of processes and what each loads once, whether or not the executor keeps its workers
    between passes.
    """
    # The videos are loops, in which lips may match shifted audio by chance.
    states = StateConfig(av_offset="keep")
    config = CurationConfig(executor=executor, workers=workers, min_retention=0.0, states=states)
    total_s = 0.0
    tasks = analysis_task(config.limits), clip_task(config.limits)
    with tempfile.TemporaryDirectory() as home, Executor(executor, workers) as pool:
        warm_up = _jobs(Path(home) / "warm_up", talking_videos(WARM_UP_S)[:1] * WARM_UP_VIDEOS * workers, config)
        jobs = warm_up + _jobs(Path(home) / "real", paths, config)
        for task in tasks:
            done = pool.map(task, jobs)
            outcomes = [next(done) for _ in warm_up]
            started = time.perf_counter()
            outcomes += done
            total_s += time.perf_counter() - started
            assert all(outcome["ok"] for _, outcome in outcomes), outcomes
    return total_s


def _jobs(home: Path, paths: list[Path], config: CurationConfig) -> list[Job]:
    """Return the jobs of a corpus of these files, which may contain duplicates."""
    home.mkdir()
    copies = [home / f"{number}-{path.name}" for number, path in enumerate(paths)]
    for path, copy in zip(paths, copies, strict=True):
        copy.symlink_to(path.resolve())
    raw = make_raw(home / "raw", copies)
    return [_job(raw, home / "parts", source, config) for source in read_sources(raw)]


def _job(raw: Path, parts: Path, source: Source, config: CurationConfig) -> Job:
    """Return the job of one source, with room for its ROI cache."""
    room = config.roi_cache_gb * 1e9
    return Job(raw=raw, parts=parts, source=source, config=config, key="benchmark", roi_cache_bytes=room)


def speed(paths: list[Path]) -> float:
    """Return the seconds of decoding alone over the seconds of curation, of as many videos as processes."""
    before, ours, after = decode_s(paths), curate_s(paths, "process", PROCESSES), decode_s(paths)
    print(f"{paths[0].stem} and others: decoding alone {(before + after) / 2:.1f} s, curation {ours:.1f} s", flush=True)
    return (before + after) / 2 / ours


def peak_rss_mb(video: Path, config: CurationConfig) -> float:
    """Return the peak resident memory of both passes over one video (MiB)."""
    with tempfile.TemporaryDirectory() as home:
        raw = make_raw(Path(home) / "raw", [video])
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(curate_alone, raw, Path(home) / "parts", config).result()


def curate_alone(raw: Path, parts: Path, config: CurationConfig) -> float:
    """Run both passes in this process; return its peak memory (MiB)."""
    import resource

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    job = _job(raw, parts, read_sources(raw)[0], config)
    for function in (analyse_source, cut_source):
        outcome = function(job)
        assert outcome["ok"], outcome
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{function.__name__}: {outcome['seconds']:.0f} s, memory up to {peak_mb:.0f} MiB", flush=True)
    return peak_mb


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each video (s)")
    parser.add_argument("--long", action="store_true", help="only measure the memory on a video of two hours")
    parser.add_argument("--no-ray", action="store_true", help="skip Ray")
    arguments = parser.parse_args()
    if arguments.long:
        config = CurationConfig(min_retention=0.0, mesh_stride=LONG_STRIDE)
        print(f"a video of two hours: {peak_rss_mb(talking_videos(LONG_S)[0], config):.0f} MiB")
        return
    found = {
        f"speed_over_decode_only{name}": speed(talking_videos(arguments.seconds, px)) for px, name in SIZES.items()
    }
    paths = talking_videos(arguments.seconds)
    if not arguments.no_ray:
        found["decode_two_over_one"] = decode_s(paths * 4, 1) / decode_s(paths * 4, 2)
        found["ray_two_workers_over_one"] = curate_s(paths * 2, "ray", 1) / curate_s(paths * 2, "ray", 2)
    found["peak_rss_mb"] = peak_rss_mb(paths[0], CurationConfig(min_retention=0.0))
    print(f"{os.cpu_count()} cores, {len(paths)} videos of {arguments.seconds:g} s, {PROCESSES} processes")
    for name, value in found.items():
        print(f"{name:<28}{value:>9.3f}{f'   required {LIMITS[name]:.3f}' if name in LIMITS else ''}")
    if arguments.json:
        print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
