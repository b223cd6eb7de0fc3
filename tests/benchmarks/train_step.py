"""Time of a training step compared with diffusers' Wan: `python -m tests.benchmarks.train_step [--json]`.

Forward and backward pass of the same transformer, ours and diffusers' WanTransformer3DModel, at 21 latent frames and
width 768, under bfloat16 autocast, alternately in one process. Then ours with both voices and one reference image, and
the rate of a plain matmul as the limit of all of them.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import diffusers
import torch
from torch import Tensor, nn

from lpm_model.character import reference_positions
from lpm_model.config import ModelConfig
from lpm_model.describe import Workload, describe
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.training.engine.throughput import peak_flops

FRAMES, GRID, LAYERS, TEXT_TOKENS = 21, 16, 4, 64
ROUNDS = 7
PLAIN = ModelConfig(
    width=768, layers=LAYERS, heads=12, ffn_width=3072, text_width=512, text_tokens=TEXT_TOKENS, audio_width=0,
    residual_gain=0.0, predicts="velocity",
)  # fmt: skip
WHOLE = replace(PLAIN, audio_width=960)
TRAIN_TO_FORWARD_FLOPS = 3
"""FLOPs of a training step over those of its forward pass."""


def peer() -> nn.Module:
    """Build the same shape in diffusers."""
    model: nn.Module = diffusers.WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=64, num_layers=LAYERS, ffn_dim=3072, text_dim=512, freq_dim=256
    )
    return model


def timed(step: Callable[[], Tensor], model: nn.Module) -> float:
    """Time one forward and backward pass in seconds."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = step().float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds


def measure() -> dict[str, float]:
    """Return the median seconds of each, and the matmul rate in TFLOP/s."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    latents, text = normal(1, 16, FRAMES, GRID, GRID), normal(1, TEXT_TOKENS, 512)
    plain, whole, theirs = DiffusionTransformer(PLAIN), DiffusionTransformer(WHOLE), peer()
    sigma, time_ids = torch.full((1, FRAMES), 0.5), torch.tensor([500.0])
    voices = [normal(1, FRAMES + WHOLE.context_latents, WHOLE.audio_tokens, 960) for _ in range(2)]
    given = Conditions(
        text=text, speak=voices[0], listen=voices[1], references=normal(1, 1, 16, GRID, GRID),
        reference_positions=reference_positions(["global"]),
    )  # fmt: skip
    steps: dict[str, tuple[Callable[[], Tensor], nn.Module]] = {
        "diffusers": (
            lambda: theirs(latents, timestep=time_ids, encoder_hidden_states=text, return_dict=False)[0],
            theirs,
        ),
        "ours": (lambda: plain(latents, sigma, Conditions(text=text)), plain),
        "ours with voices and a reference": (lambda: whole(latents, sigma, given), whole),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    matmul_tflops: list[float] = []
    for index in range(ROUNDS + 1):
        for name, (step, model) in steps.items():
            taken = timed(step, model)
            if index:  # the first round allocates
                seconds[name].append(taken)
        matmul_tflops.append(peak_flops(torch.device("cpu")) / 1e12)
    return {name: statistics.median(values) for name, values in seconds.items()} | {"tflops": max(matmul_tflops)}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    found = measure()
    cost = describe(PLAIN, Workload(frames=FRAMES, tokens=GRID * GRID // 4))
    floor = TRAIN_TO_FORWARD_FLOPS * cost.total_flops / found["tflops"] / 1e12
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{FRAMES} latent frames of {GRID * GRID // 4} tokens, {LAYERS} layers, median of {ROUNDS} rounds"
    )
    for name in ("diffusers", "ours", "ours with voices and a reference"):
        print(f"{name:<36}{1000 * found[name]:>9.0f} ms")
    print(f"{'limit: its matmuls at full rate':<36}{1000 * floor:>9.0f} ms   ({found['tflops']:.2f} TFLOP/s)")
    figures = {
        "time_ratio_to_diffusers": found["ours"] / found["diffusers"],
        "time_added_by_audio_and_references": found["ours with voices and a reference"] / found["ours"] - 1,
        "share_of_gemm_peak": floor / found["ours"],
    }
    for name, value in figures.items():
        print(f"{name:<36}{value:>9.3f}")
    if arguments.json:
        print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
