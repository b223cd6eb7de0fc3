"""The 17b model live on one GPU: `python -m tests.benchmarks.large [--layers N] [--json]`.

Random weights, 480 x 832, chunk 3 over sink 3 and window 12, backbone and refiner on one base, from audio to pixels
(the shipped tiny decoder). Each autoencoder shape (latent cells of 8 or 16 px) is measured eagerly, compiled and
replayed as CUDA graphs, and with FP8 matmuls.

- floor: the matmuls of all passes of a chunk (`lpm model describe`) at the rate of one large matmul, measured here.
- share_of_floor: that over the time of a whole step.
- fps: video frames of a chunk over the time of a step; 24 is live.
- per_step: the history of each denoising step is cached, without passes of its own.

Audio features are mel bands instead of wav2vec2's; the rest is the 17b profile.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.character import Character, reference_positions
from lpm_model.config import Lora, ModelConfig, OnlineConfig
from lpm_model.describe import Workload, describe
from lpm_model.float8 import FLOAT8
from lpm_model.lora import adapted_layers, clone_with_adapter
from lpm_model.online import OnlineModel
from lpm_model.training.engine.throughput import peak_flops

SHAPE = ModelConfig(
    width=5120, layers=40, heads=40, ffn_width=13824, text_width=4096, text_tokens=512, audio_mix_width=512,
    residual_gain=0.0, predicts="velocity",
)  # fmt: skip
WINDOW = OnlineConfig(chunk_latents=3, sink_latents=3, window_latents=12, refiner_sigma=0.3)
PIXELS = (480, 832)
UPDATE = Lora(rank=256, alpha=256.0)
"""Low-rank update of the refiner, as left by a distillation with adapters of rank 128."""
ROUNDS, SIZE = 3, 8192
DEVICE = torch.device("cuda")
PEAK_BANDWIDTH_TB_S = 3.0
"""Memory bandwidth for the lower bound of the step time; far from limiting at these matmuls."""


def timed(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the median seconds of several runs, without the first."""
    taken = []
    for turn in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if turn:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def float8_peak() -> float:
    """Return the rate of a large FP8 matmul (FLOP/s)."""
    values, scale = torch.randn(SIZE, SIZE, device=DEVICE).to(FLOAT8), torch.ones(SIZE, 1, device=DEVICE)
    return (
        2
        * SIZE**3
        / timed(
            lambda: torch._scaled_mm(values, values.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16), 10
        )
    )


@torch.no_grad()
def build(shape: ModelConfig, online: OnlineConfig) -> OnlineModel:
    """Return a model with random weights on the GPU; the refiner is a low-rank update of the backbone."""
    model = OnlineModel(shape, online, load_autoencoder(None), PIXELS[0], refiner=False, device="meta")
    model.backbone = model.backbone.bfloat16().to_empty(device=DEVICE)
    for name, weight in model.backbone.named_parameters():
        if weight.dim() > 1:
            weight.normal_(std=0.02)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
    model.refiner = clone_with_adapter(model.backbone, "refiner", UPDATE)
    for layer in adapted_layers(model.refiner):
        layer.adapters["refiner"].up.normal_(std=0.002)
    model.to(DEVICE).eval().requires_grad_(False)
    model.autoencoder.set_decoder_dtype(torch.bfloat16)
    return model


class Call:
    """A conversation whose window is full."""

    def __init__(self, model: OnlineModel, cell_px: int) -> None:
        height, width = (side // cell_px // 2 * 2 for side in PIXELS)
        who = Character(
            torch.randn(1, 16, 1, height, width), torch.randn(1, 1, 16, height, width), reference_positions(["global"])
        )
        self.model, self.tokens = model, height * width // 4
        self.voice = 0.1 * torch.randn(1, model.chunk_samples + model.lookahead_samples)
        torch.cuda.reset_peak_memory_stats()
        self.state = model.init_state(who)
        for _ in range(model.online.cache_latents // model.chunk_latents + 4):
            self.step()

    def step(self) -> torch.Tensor:
        """Generate one chunk, from voices to pixels, and return its frames."""
        frames, self.state = self.model.step(self.state, self.voice, self.voice)
        return frames

    def figures(self, flops_s: float) -> dict[str, float]:
        """Return the time and memory of a step, and the lower bound of its time."""
        online, model = self.model.online, self.model
        setting = Workload(frames=online.chunk_latents, tokens=self.tokens, past_frames=online.cache_latents + 1)
        floor = online.passes * describe(model.config, setting).min_time_s(flops_s / 1e12, PEAK_BANDWIDTH_TB_S)
        step = timed(self.step)
        return {
            "step_ms": 1000 * step,
            "floor_ms": 1000 * floor,
            "share_of_floor": floor / step,
            "fps": model.chunk_frames / step,
            "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        }


def measure(shape: ModelConfig, progress: Callable[[str, dict[str, float]], None]) -> None:
    """Measure all settings and report each as soon as it is known."""
    peak, peak8 = peak_flops(DEVICE, SIZE), float8_peak()
    progress("matmul", {"bf16_tflops": peak / 1e12, "float8_tflops": peak8 / 1e12})
    model = build(shape, WINDOW)

    def report(name: str, cells: tuple[int, ...]) -> None:
        for cell_px in cells:
            progress(f"{name}, {cell_px}x{cell_px}", Call(model, cell_px).figures(peak))
            gc.collect()
            torch.cuda.empty_cache()

    report("bf16", (16,))
    model.accelerate(compile=True)
    report("bf16 compiled", (16, 8))
    model.accelerate(float8=True)
    report("float8 compiled", (16, 8))
    model.online = replace(WINDOW, history="per_step")
    report("float8 compiled per_step", (16,))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.large", description=__doc__)
    parser.add_argument("--layers", type=int, default=SHAPE.layers, help="fewer for a check")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return
    found: dict[str, dict[str, float]] = {}

    def report(name: str, figures: dict[str, float]) -> None:
        found[name] = {key: round(value, 4) for key, value in figures.items()}
        print(f"{name:28}" + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {given.layers} layers")
    measure(replace(SHAPE, layers=given.layers), report)
    if given.json:
        print(json.dumps({"hardware": torch.cuda.get_device_name(), "torch": torch.__version__, **found}))


if __name__ == "__main__":
    main()
