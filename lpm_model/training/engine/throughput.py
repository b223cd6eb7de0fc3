"""Training throughput: tokens/s, FLOP/s and model FLOPs utilization (MFU)."""

from time import perf_counter
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from lpm_model.config import ModelConfig
from lpm_model.describe import Workload, forward_flops
from lpm_model.precision import native_dtype
from lpm_model.training.engine.config import Scale

ONE_PROCESS = Scale()
"""One process."""
TRAIN_TO_FORWARD_FLOPS = 3
"""Ratio of the FLOPs of forward and backward pass to those of the forward pass alone."""
LOG_INTERVAL_BATCHES = 10


def peak_flops(device: torch.device, size: int = 2048, kind: torch.dtype | None = None) -> float:
    """Measure the rate of a large matmul on a device in FLOP/s, best of ten; `kind` None is the native type."""
    a, b = (torch.randn(size, size, device=device, dtype=kind or native_dtype(device)) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = perf_counter()
        a @ b
        _wait(device)
        best = min(best, perf_counter() - start)
    return float(2 * size**3 / best)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Throughput(Callback):
    """Logs `tokens_per_s`, `tflops_per_s` and `mfu` every few batches; recomputed activations do not count.

    The values are those of all processes, extrapolated from the batches of the main one.
    """

    def __init__(self, config: ModelConfig, scale: Scale = ONE_PROCESS) -> None:
        self.config, self.scale = config, scale
        self.peak = 0.0
        self.mfu: list[float] = []
        self._tokens = self._flops = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.peak = peak_flops(module.device)
        self._since = perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rows, _, frames, height, width = batch.latents.shape
        workload = Workload(frames=frames, tokens=height * width // 4, batch=rows)
        self._tokens += self.scale.data_parallel * rows * frames * workload.tokens
        forward = sum(forward_flops(self.config, workload).values())
        self._flops += self.scale.data_parallel * TRAIN_TO_FORWARD_FLOPS * forward
        if (batch_idx + 1) % LOG_INTERVAL_BATCHES:
            return
        _wait(pl_module.device)
        now = perf_counter()
        seconds = now - self._since
        self.mfu.append(self._flops / seconds / self.peak / self.scale.world)
        values = {"tokens_per_s": self._tokens / seconds, "tflops_per_s": self._flops / seconds / 1e12}
        pl_module.log_dict({**values, "mfu": self.mfu[-1]})
        self._since, self._tokens, self._flops = now, 0.0, 0.0
