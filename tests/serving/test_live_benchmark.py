import json
import subprocess
import sys
from pathlib import Path


def test_live_benchmark_prints_all_metrics() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.live", "--engine", "fake", "--seconds", "3", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == {
        "sustained_fps", "compute_seconds_per_video_second", "first_frame_ms", "reaction_p95_ms", "duration_s",
    }  # fmt: skip
    assert all(value > 0 for value in figures.values())
    assert figures["duration_s"] > 1.5
