"""Throughput metrics: FLOPs by the model's own formula, relative to the measured matmul rate."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lpm_model.describe import Workload, describe
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.base.train import train_base
from lpm_model.training.engine import throughput
from lpm_model.training.engine.throughput import Throughput, peak_flops
from tests.lpm_model import tiny


def test_throughput_is_logged_every_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(1000))
    monkeypatch.setattr(throughput, "peak_flops", lambda device: 1e9)
    monkeypatch.setattr(throughput, "perf_counter", lambda: float(next(seconds)))
    logged: list[dict[str, Any]] = []
    plain = Throughput.on_train_batch_end

    def spy(self: Throughput, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        monkeypatch.setattr(module, "log_dict", lambda figures, **_: logged.append(figures))
        plain(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(Throughput, "on_train_batch_end", spy)
    encoder = tiny.write_autoencoder(tmp_path / "autoencoder")
    settings = BaseTraining(
        model=tiny.MODEL, steps=21, batch=2, clip_latents=4, crop_steps=0, warmup_steps=0, autoencoder=str(encoder)
    )
    train_base(tiny.write_dataset(tmp_path / "dataset", encoder), tmp_path / "base", settings)
    logged = [figures for figures in logged if "mfu" in figures]
    assert len(logged) == 2
    cost = describe(tiny.MODEL, Workload(frames=4, tokens=4, batch=2))
    for figures in logged:
        assert figures["tokens_per_s"] == 10 * 2 * 4 * 4
        assert figures["tflops_per_s"] == pytest.approx(10 * 3 * cost.total_flops / 1e12)
        assert figures["mfu"] == pytest.approx(1e12 * figures["tflops_per_s"] / 1e9)


def test_peak_flops_is_measured() -> None:
    assert peak_flops(torch.device("cpu"), 128) > 1e8
