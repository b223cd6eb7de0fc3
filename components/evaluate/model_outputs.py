"""Runs the models under evaluation: Online LPM over all cases, Base LPM over the beginning of a few."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.evaluate.baseline import Baseline
from components.evaluate.cases.cases import Array, Case
from components.evaluate.config import EvaluateConfig
from components.evaluate.metrics.probe_set import Measurement
from components.evaluate.timing import Stopwatch
from lpm_model.config import AUDIO_RATE
from lpm_model.progress import Progress
from serving.talk import ArraySource, OnlineLPM, stream


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One generated video."""

    video: Array
    """uint8 [T, H, W, 3]."""
    step_seconds: list[float]
    """Time of every step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOutputs:
    """Generated videos and their measurements; every list has one entry per case, the long conversation last."""

    videos: list[Generated]
    """One per case."""
    measurements: list[Measurement]
    """One per case."""


def run_online(
    model: OnlineLPM, baseline: Baseline, seed: int, stopwatch: Stopwatch, progress: Progress
) -> ModelOutputs:
    """Generate every case with an Online LPM and measure the videos."""
    with stopwatch.part("generate"):
        videos = [generate_online(model, case, seed) for case in progress.track(baseline.cases, "generate")]
    with stopwatch.part("measure_generated"):
        measurements = [baseline.probes.measure(g.video) for g in progress.track(videos, "measure generated")]
    return ModelOutputs(videos=videos, measurements=measurements)


def generate_online(model: OnlineLPM, case: Case, seed: int) -> Generated:
    """Generate a case with an Online LPM from its image, its reference and both voices; time every step."""
    character = model.character(case.image, [case.reference])
    chunks = stream(model, character, ArraySource(case.speak), ArraySource(case.ground_truth.listen), seed=seed)
    frames, times = [], []
    began = time.perf_counter()
    for chunk in chunks:
        times.append(time.perf_counter() - began)
        frames.append(chunk.frames)
        began = time.perf_counter()
    # The first step includes one-time work (compilation, allocation) that a live session does before it starts.
    return Generated(video=np.concatenate(frames)[: len(case.frames)], step_seconds=times[1:] or times)


def generate_base(base: Any, case: Case, config: EvaluateConfig) -> Generated:
    """Generate the beginning of a case with a Base LPM.

    Args:
        base: from `lpm_model.sampler.load_base`.
        case: the case.
        config: length, steps and guidance of Base.
    """
    import torch

    from lpm_model.sampler import sample_base

    count = config.base_seconds * AUDIO_RATE
    speak, listen = (
        torch.from_numpy(pcm[:count].astype(np.float32) / 32768)[None] for pcm in (case.speak, case.ground_truth.listen)
    )
    character = base.character(case.image, [case.reference])
    began = time.perf_counter()
    video = sample_base(
        base, character, speak, listen, steps=config.base_steps, guidance=config.base_guidance, seed=config.seed
    )
    return Generated(video=np.asarray(video[0], np.uint8), step_seconds=[time.perf_counter() - began])
