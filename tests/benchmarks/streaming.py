"""Cost of a live chunk and of its parts: `python -m tests.benchmarks.streaming [--json]`.

One process, bfloat16, every value the median of alternating rounds. On a CPU without native bfloat16 matmuls (neither
AMX nor AVX512-BF16) that takes an hour and is meaningless: use `--type float32` there, whose results describe that CPU
and are not comparable with bfloat16. The measured shape: width 768, 12 layers, 256 tokens per latent frame, chunk 3
over sink 3 and window 12.

- share_of_gemm_peak: matmul rate of one forward pass over a full cache, as a fraction of the plain GEMM rate.
- speedup_over_window_recompute: a chunk of ours (forward passes and cache pass) against diffusers' Wan transformer,
  which recomputes the same 18 latent frames in as many denoising steps.
- speedup_with_history_per_step: the same where a chunk caches the keys of its denoising and needs no cache pass.
- last_over_second_minute: time of a chunk after 59 minutes relative to one after a minute, with the counter advanced.
- tiny_compute_seconds_per_video_second: the tiny profile from voices to pixels.
- per_frame_ms_chunk_N: time of a chunk per video frame, at equal sink and window.

Random weights: matmul time does not depend on them.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import diffusers
import numpy as np
import torch
from torch import Tensor

from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.character import Character, reference_positions
from lpm_model.config import AUDIO_RATE, FRAMES_PER_LATENT, LATENT_FPS, ModelConfig, OnlineConfig
from lpm_model.describe import Workload, forward_flops
from lpm_model.dit import Conditions
from lpm_model.online import OnlineModel
from lpm_model.precision import native_dtype
from lpm_model.rollout import Noise
from lpm_model.training.engine.throughput import peak_flops
from pipelines.config import load_config

GRID, TOKENS, SIZE_PX, ROUNDS, TEXT = 32, 256, 128, 5, 64
SHAPE = ModelConfig(
    width=768, layers=12, heads=6, ffn_width=3072, text_width=TEXT, text_tokens=TEXT, residual_gain=0.0,
    predicts="velocity",
)  # fmt: skip
MINUTES, PAIRS = (1, 59), 15
"""Minutes of a conversation that are compared, and the number of pairs."""
TINY = load_config(["profile=tiny"])
WINDOW = OnlineConfig(chunk_latents=3, sink_latents=3, window_latents=12, refiner_sigma=0.3)


def alternating(steps: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median seconds of each step over alternating rounds; the first round, which allocates, is dropped."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


class Stream:
    """A model of the measured shape in the middle of a conversation."""

    def __init__(self, online: OnlineConfig, kind: torch.dtype) -> None:
        torch.manual_seed(0)
        self.online = online
        self.model = OnlineModel(SHAPE, online, load_autoencoder(None), SIZE_PX).eval().requires_grad_(False)
        for network in self.model.networks.values():
            network.to(kind)
        who = Character(
            torch.randn(1, 16, 1, GRID, GRID), torch.randn(1, 1, 16, GRID, GRID), reference_positions(["global"])
        )
        self.cache = self.model.prefill(who, static=True)
        frames, wide = online.chunk_latents + SHAPE.context_latents, SHAPE.audio_width
        self.given = Conditions(
            text=torch.randn(1, TEXT, TEXT).to(kind),
            speak=torch.randn(1, frames, SHAPE.audio_tokens, wide).to(kind),
            listen=torch.randn(1, frames, SHAPE.audio_tokens, wide).to(kind),
        )
        self.noise = Noise((1, 16, online.chunk_latents, GRID, GRID), torch.Generator().manual_seed(0))
        while int(self.cache.written) < online.cache_latents:
            self.chunk()
        with torch.inference_mode():
            self.conditions = self.model.backbone.with_cross_kv(self.given, 1, online.chunk_latents)

    @torch.inference_mode()
    def forward(self) -> Tensor:
        """Run one denoising pass and return its output."""
        return self.model.denoise(self.cache, self.noise.draw(), 1, self.conditions)

    @torch.inference_mode()
    def append(self) -> None:
        """Run the cache pass."""
        self.model.append(self.cache, self.noise.draw(), self.conditions, self.noise)

    @torch.inference_mode()
    def cross_kv(self) -> None:
        """Compute the cross-attention keys and values of a chunk."""
        self.model.backbone.with_cross_kv(self.given, 1, self.online.chunk_latents)

    @torch.inference_mode()
    def chunk(self) -> Tensor:
        """Run all backbone passes of a chunk and return its clean latents."""
        loop = self.model.rollout(self.cache, self.given, self.online.chunk_latents, self.noise)
        ((_, clean),) = loop
        return clean


class Recompute:
    """Diffusers' transformer of the same shape over the whole window, as a model without a cache must compute it."""

    def __init__(self, kind: torch.dtype) -> None:
        torch.manual_seed(0)
        self.model = diffusers.WanTransformer3DModel(
            num_attention_heads=SHAPE.heads, attention_head_dim=SHAPE.head_width, num_layers=SHAPE.layers,
            ffn_dim=SHAPE.ffn_width, text_dim=TEXT, freq_dim=SHAPE.time_width,
        ).to(kind)  # fmt: skip
        frames = WINDOW.cache_latents + WINDOW.chunk_latents
        self.latents = torch.randn(1, 16, frames, GRID, GRID).to(kind)
        self.text = torch.randn(1, TEXT, TEXT).to(kind)

    @torch.inference_mode()
    def chunk(self) -> None:
        """Run all denoising steps of a chunk."""
        for _ in WINDOW.backbone_sigmas:
            self.model(self.latents, timestep=torch.tensor([500.0]), encoder_hidden_states=self.text, return_dict=False)


def last_over_second_minute(stream: Stream) -> float:
    """Return how much longer a chunk takes late in a conversation; `make test-long` runs the whole hour instead.

    The median over pairs measured back to back in alternating order, so that other load on the machine affects both.
    """

    def seconds(minutes: int) -> float:
        stream.cache.written.fill_(minutes * 60 * LATENT_FPS)
        stream.cache.prepared.invalidate()
        start = time.perf_counter()
        stream.chunk()
        return time.perf_counter() - start

    seconds(1)  # the first one allocates
    ratios = []
    for turn in range(PAIRS):
        taken = {minutes: seconds(minutes) for minutes in (MINUTES if turn % 2 else MINUTES[::-1])}
        ratios.append(taken[MINUTES[1]] / taken[MINUTES[0]])
    return statistics.median(ratios)


def tiny_step(kind: torch.dtype) -> Callable[[], object]:
    """Return one step of the tiny profile, from voices to pixels."""
    torch.manual_seed(0)
    model = OnlineModel(TINY.train.model, TINY.distill.online, load_autoencoder(None), SIZE_PX)
    model.eval().requires_grad_(False)
    model.backbone.to(kind)
    model.autoencoder.set_decoder_dtype(kind)  # type: ignore[attr-defined]
    image = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
    state = model.init_state(model.character(image))
    voice = 0.1 * torch.randn(1, model.chunk_samples + model.lookahead_samples)

    def step() -> None:
        nonlocal state
        _, state = model.step(state, voice, voice)

    for _ in range(model.online.cache_latents):
        step()
    return step


def parts(stream: Stream) -> dict[str, Callable[[], object]]:
    """Return the parts of a chunk, each as a function of its own."""
    autoencoder, encoder = stream.model.autoencoder, stream.model.audio_encoder
    latents = torch.randn(1, 16, stream.online.chunk_latents, GRID, GRID)
    samples = 0.1 * torch.randn(1, encoder.past_samples + stream.model.chunk_samples + encoder.lookahead_samples)
    states = [autoencoder.init_decode(1)]
    image = torch.randn(1, 3, 1, 8 * GRID, 8 * GRID)

    @torch.inference_mode()
    def decode() -> None:
        _, states[0] = autoencoder.decode_step(latents, states[0])

    @torch.inference_mode()
    def refine() -> None:
        stream.model.refine(stream.cache, stream.noise.draw(), stream.conditions, stream.noise)

    return {
        "audio features": lambda: encoder.encode(samples),
        "cross-attention keys and values": stream.cross_kv,
        "backbone, one pass": stream.forward,
        "backbone, cache pass": stream.append,
        "refiner, one pass": refine,
        "decoder": decode,
        "encoder, the character": lambda: autoencoder.encode(image),
    }


def measure(kind: torch.dtype) -> tuple[dict[str, float], dict[str, float]]:
    """Return the results, and the seconds of each part."""
    stream, peer = Stream(WINDOW, kind), Recompute(kind)
    stepwise = Stream(replace(WINDOW, history="per_step"), kind)
    peaks: list[float] = []
    taken = alternating(
        {
            "pass": stream.forward,
            "chunk": stream.chunk,
            "stepwise": stepwise.chunk,
            "recompute": peer.chunk,
            "peak": lambda: peaks.append(peak_flops(torch.device("cpu"), kind=kind)),
        }
    )
    past = WINDOW.cache_latents + 1
    flops = forward_flops(
        replace(SHAPE, audio_width=0), Workload(frames=WINDOW.chunk_latents, tokens=TOKENS, past_frames=past)
    )
    figures = {
        "share_of_gemm_peak": sum(flops.values()) / taken["pass"] / statistics.median(peaks),
        "pass_ms": 1000 * taken["pass"],
        "gemm_tflops": statistics.median(peaks) / 1e12,
        "speedup_over_window_recompute": taken["recompute"] / taken["chunk"],
        "speedup_with_history_per_step": taken["recompute"] / taken["stepwise"],
        "last_over_second_minute": last_over_second_minute(stream),
    }
    sizes = {size: Stream(replace(WINDOW, chunk_latents=size), kind) for size in (1, 6)} | {3: stream}
    by_size = alternating({str(size): one.chunk for size, one in sizes.items()})
    for size in sorted(sizes):
        figures[f"per_frame_ms_chunk_{size}"] = 1000 * by_size[str(size)] / (size * FRAMES_PER_LATENT)
    each = alternating({"tiny": tiny_step(kind)}, rounds=40)["tiny"]
    figures["tiny_compute_seconds_per_video_second"] = each * LATENT_FPS / TINY.distill.online.chunk_latents
    return figures, alternating(parts(stream))


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.streaming", description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument(
        "--type", choices=["bfloat16", "float32"], default="bfloat16", help="type of weights and matmuls"
    )
    given = parser.parse_args()
    native = native_dtype(torch.device("cpu")) == torch.bfloat16
    if given.type == "bfloat16" and not native:
        print("this CPU has no native bfloat16 matmuls: the results are meaningless, use --type float32", flush=True)
    figures, seconds = measure(getattr(torch, given.type))
    print(
        f"{given.type} ({'with' if native else 'without'} native bfloat16 matmuls), "
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; a chunk is "
        f"{WINDOW.chunk_latents} latent frames, {WINDOW.chunk_latents * FRAMES_PER_LATENT} video frames at "
        f"{AUDIO_RATE // 1000} kHz audio"
    )
    for name, value in seconds.items():
        print(f"{name:<40}{1000 * value:>10.1f} ms")
    for name, value in figures.items():
        print(f"{name:<40}{value:>10.3f}")
    if given.json:
        about = {"type": given.type, "native_bfloat16": native}
        print(json.dumps(about | {name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
