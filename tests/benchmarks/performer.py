"""Measure the speed of rendering and encoding: `python -m tests.benchmarks.performer [--json]`.

Two processes each render one person at 128 px and encode the frames with H.264, as for the two cameras of a
conversation. Encoding alone is the upper limit.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from numpy.typing import NDArray

from components.performer.identity import Identity
from components.performer.renderer import Renderer
from components.performer.tracks import ARKIT_INDEX, Tracks
from lpm_model.config import VIDEO_FPS

PROCESSES = 2
SECONDS = 20
SIZE_PX = 128
ROUNDS = 3
FLOOR_FPS = 60


SPEECH = (
    "jawOpen", "mouthFunnel", "mouthPucker", "mouthSmile_L", "mouthSmile_R", "mouthLowerDown_L", "mouthLowerDown_R",
    "mouthUpperUp_L", "mouthUpperUp_R", "browInnerUp",
)  # fmt: skip


def talking(frames: int) -> Tracks:
    """Motion of a head that talks, blinks and moves, with as many active blendshapes as speech."""
    tracks = Tracks.rest(frames)
    time_s = np.arange(frames, dtype=np.float32) / VIDEO_FPS
    for rate, name in enumerate(SPEECH, start=3):
        tracks.blendshapes[:, ARKIT_INDEX[name]] = 0.25 + 0.25 * np.sin(rate * 1.7 * time_s)
    for name in ("eyeBlink_L", "eyeBlink_R"):
        tracks.blendshapes[:, ARKIT_INDEX[name]] = np.exp(-(((time_s % 3) - 1.5) ** 2) / 0.005)
    tracks.rotation[:] = 0.15 * np.sin(time_s[:, None] * np.array([1.1, 0.7, 0.5], np.float32))
    tracks.gaze[:, 0] = 0.1 * np.sin(time_s)
    return tracks


def encode(frames: NDArray[np.uint8]) -> int:
    """Encode to H.264 in memory; returns the number of bytes."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=VIDEO_FPS, options={"crf": "18", "preset": "veryfast", "bf": "0", "threads": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = SIZE_PX, SIZE_PX, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return len(target.getvalue())


def work(seed: int) -> tuple[float, float]:
    """Return the seconds to render and encode one person, and the encoding part of it."""
    count = SECONDS * VIDEO_FPS
    renderer, person = Renderer(SIZE_PX), Identity.from_seed(seed)
    start = time.perf_counter()
    frames = renderer.render(person, talking(count))
    rendered = time.perf_counter()
    encode(frames)
    ended = time.perf_counter()
    return ended - start, ended - rendered


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    both, limit = [], []
    frames = SECONDS * VIDEO_FPS * PROCESSES
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(work, range(PROCESSES)))  # warm-up: compiles the kernels or loads them from the cache
        for turn in range(1, ROUNDS + 1):
            seconds = list(pool.map(work, range(turn * 10, turn * 10 + PROCESSES)))
            both.append(frames / max(total for total, _ in seconds))
            limit.append(frames / max(encoding for _, encoding in seconds))
    ours = statistics.median(both)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {PROCESSES} processes, {SIZE_PX} px, median of {ROUNDS} rounds"
    )
    print(f"{'required':<28}{FLOOR_FPS:>8} frames/s")
    print(f"{'limit: H.264 encoding alone':<28}{statistics.median(limit):>8.0f} frames/s")
    print(f"{'ours: render + encode':<28}{ours:>8.0f} frames/s")
    if arguments.json:
        print(json.dumps({"fps_128px": round(ours, 1)}))


if __name__ == "__main__":
    main()
