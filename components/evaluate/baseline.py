"""The model-independent part of an evaluation: fitted probes, and the ground truth measured with them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from components.evaluate.cases.cases import Array, Bench, Case
from components.evaluate.metrics.probe_set import Measurement, ProbeSet, fit_probe_set
from components.evaluate.timing import Stopwatch
from lpm_model.config import FRAMES_PER_LATENT
from lpm_model.progress import Progress

WINDOW_LATENTS = 24
"""Latent frames per autoencoder call; bounds the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Ground truth and its reconstruction; every list has one entry per case, the long conversation last."""

    cases: list[Case]
    """Scored cases, then the long conversation."""
    probes: ProbeSet
    """Probes fitted on other people."""
    reconstructed: list[Array]
    """Ground truth encoded and decoded by the autoencoder, uint8 [T, H, W, 3]."""
    ground_truth_measurements: list[Measurement]
    """Measurements of the ground truth."""
    reconstructed_measurements: list[Measurement]
    """Measurements of its reconstruction: anchor 1 of every metric."""


def make_baseline(autoencoder: Any, bench: Bench, stopwatch: Stopwatch, progress: Progress) -> Baseline:
    """Fit the probes on other people, reconstruct the ground truth of all cases, and measure both."""
    cases = [*bench.cases, bench.talk]
    with stopwatch.part("probes"):
        clips = progress.track(bench.probes, "reconstruct probe people")
        probes = fit_probe_set(
            bench.probes, [np.concatenate([c.frames[:1], reconstruct(autoencoder, c.frames)]) for c in clips]
        )
    with stopwatch.part("reconstruct"):
        tracked = progress.track(cases, "reconstruct ground truth")
        reconstructed = [reconstruct(autoencoder, np.concatenate([c.image[None], c.frames])) for c in tracked]
    with stopwatch.part("measure_ground_truth"):
        videos = [*[c.frames for c in cases], *reconstructed]
        measurements = [probes.measure(video) for video in progress.track(videos, "measure ground truth")]
    return Baseline(
        cases=cases,
        probes=probes,
        reconstructed=reconstructed,
        ground_truth_measurements=measurements[: len(cases)],
        reconstructed_measurements=measurements[len(cases) :],
    )


def reconstruct(autoencoder: Any, video: Array) -> Array:
    """Encode and decode a video.

    Args:
        autoencoder: a `VideoAutoencoder`.
        video: uint8 [4k + 1, H, W, 3]; the first frame opens the clip.

    Returns:
        uint8 [4k, H, W, 3]: the reconstruction of the frames after the first.
    """
    import torch

    from lpm_model.precision import native_autocast

    step = WINDOW_LATENTS * FRAMES_PER_LATENT
    out = []
    for start in range(0, len(video) - 1, step):
        window = torch.from_numpy(video[start : start + step + 1].copy()).float().div(127.5).sub(1)
        with torch.inference_mode(), native_autocast(torch.device("cpu")):
            decoded = autoencoder.decode(autoencoder.encode(window.permute(3, 0, 1, 2)[None]))[0, :, 1:]
        pixels = decoded.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        out.append(pixels.permute(1, 2, 3, 0).numpy())
    return np.concatenate(out)
