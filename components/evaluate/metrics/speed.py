"""Speed: compute time per second of video."""

from dataclasses import dataclass

import numpy as np

from lpm_model.config import VIDEO_FPS


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedReport:
    """Generation speed."""

    seconds_per_video_second: float
    """Mean over everything generated; below 1 is faster than real time."""
    chunk_p50_ms: float
    """Median time of one step."""
    chunk_p95_ms: float
    """95th percentile of the step time."""
    chunk_frames: int
    """Frames generated per step."""


def speed_report(step_seconds: list[float], chunk_frames: int) -> SpeedReport:
    """Summarise the times of steps that generated `chunk_frames` frames each."""
    if not step_seconds:
        raise ValueError("no step was timed: generate at least one chunk")
    times = np.array(step_seconds)
    return SpeedReport(
        seconds_per_video_second=float(times.mean()) * VIDEO_FPS / chunk_frames,
        chunk_p50_ms=float(np.median(times)) * 1000,
        chunk_p95_ms=float(np.percentile(times, 95)) * 1000,
        chunk_frames=chunk_frames,
    )
