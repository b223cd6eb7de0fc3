"""Runs what is evaluated: the autoencoder over truth, Online LPM and Base LPM over the cases."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.evaluate.cases.cases import Array, Case
from components.evaluate.config import EvaluateConfig
from lpm_model.config import AUDIO_RATE, FRAMES_PER_LATENT
from serving.talk import ArraySource, OnlineLPM, stream

WINDOW_LATENTS = 24
"""Latent frames that the autoencoder passes at once: bounds the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One generated video."""

    video: Array
    """uint8 [T, H, W, 3]."""
    step_seconds: list[float]
    """Time of every step."""


def round_trip(autoencoder: Any, video: Array) -> Array:
    """Pass true frames through the autoencoder.

    Args:
        autoencoder: a `VideoAutoencoder`.
        video: uint8 [4k + 1, H, W, 3]; the first frame opens the clip.

    Returns:
        uint8 [4k, H, W, 3]: what came back for the frames after the first.
    """
    import torch

    from lpm_model.precision import products

    step = WINDOW_LATENTS * FRAMES_PER_LATENT
    out = []
    for start in range(0, len(video) - 1, step):
        piece = torch.from_numpy(video[start : start + step + 1].copy()).float().div(127.5).sub(1)
        with torch.inference_mode(), products(torch.device("cpu")):
            back = autoencoder.decode(autoencoder.encode(piece.permute(3, 0, 1, 2)[None]))[0, :, 1:]
        pixels = back.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        out.append(pixels.permute(1, 2, 3, 0).numpy())
    return np.concatenate(out)


def generate_online(model: OnlineLPM, case: Case, seed: int) -> Generated:
    """Let the Online LPM play a case from its image, its reference and both voices, and time every step."""
    character = model.character(case.image, [case.reference])
    chunks = stream(model, character, ArraySource(case.speak), ArraySource(case.truth.listen), seed=seed)
    frames, times = [], []
    began = time.perf_counter()
    for chunk in chunks:
        times.append(time.perf_counter() - began)
        frames.append(chunk.frames)
        began = time.perf_counter()
    # The first step carries one-time work (compilation, allocation) that a live session does before it starts.
    return Generated(video=np.concatenate(frames)[: len(case.frames)], step_seconds=times[1:] or times)


def generate_base(base: Any, case: Case, config: EvaluateConfig) -> Generated:
    """Let Base LPM play the beginning of a case.

    Args:
        base: from `lpm_model.sampler.load_base`.
        case: the case.
        config: length, steps and guidance of Base.
    """
    import torch

    from lpm_model.sampler import sample_base

    count = config.base_seconds * AUDIO_RATE
    speak, listen = (
        torch.from_numpy(pcm[:count].astype(np.float32) / 32768)[None] for pcm in (case.speak, case.truth.listen)
    )
    character = base.character(case.image, [case.reference])
    began = time.perf_counter()
    video = sample_base(
        base, character, speak, listen, steps=config.base_steps, guidance=config.base_guidance, seed=config.seed
    )
    return Generated(video=np.asarray(video[0], np.uint8), step_seconds=[time.perf_counter() - began])
