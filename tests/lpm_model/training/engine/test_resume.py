"""A killed training resumes with the same losses and the same peak memory."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lpm_model.training.base.config import BaseTraining
from lpm_model.training.base.train import train_base
from lpm_model.training.engine.checkpoints import CheckpointFile
from lpm_model.training.engine.optimizers import muon_and_adamw
from tests.lpm_model import tiny

TRAIN = """
import json, os, resource, sys
from pathlib import Path
from lpm_model.config import ModelConfig
from lpm_model.training.base.train import BaseModule, train_base
from lpm_model.training.base.config import BaseTraining

dataset, folder, encoder, stop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
settings = BaseTraining(
    model=ModelConfig(width=512, layers=5, heads=4, ffn_width=2048), steps=5, accumulate=2, batch=2, clip_latents=4,
    crop_steps=0, warmup_steps=0, checkpoint_steps=2, noise_aug_prob=0.5, references=3, autoencoder=encoder,
)
losses, plain = [], BaseModule.training_step

def report():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"losses": losses, "peak": peak}), flush=True)

def step(self, batch, index):
    if len(losses) == stop:
        report()
        os._exit(9)
    losses.append(plain(self, batch, index))
    losses[-1] = losses[-1].item()
    return self.dit.head.weight.new_tensor(losses[-1])

BaseModule.training_step = step
train_base(dataset, folder, settings)
report()
"""


@pytest.mark.slow
def test_resumed_run_has_losses_and_memory_of_unbroken_run(tmp_path: Path) -> None:
    """Killed at the seventh of ten batches, it resumes from the fourth, the last checkpoint."""
    encoder = tiny.write_autoencoder(tmp_path / "autoencoder")
    dataset = tiny.write_dataset(tmp_path / "dataset", encoder)

    def train(folder: str, stop: int = 99) -> dict[str, list[float]]:
        command = [sys.executable, "-c", TRAIN, str(dataset), str(tmp_path / folder), str(encoder), str(stop)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == (9 if stop < 99 else 0), run.stderr
        found: dict[str, list[float]] = json.loads(run.stdout.splitlines()[-1])
        return found

    whole, killed, resumed = train("whole"), train("killed", 6), train("killed")
    assert len(whole["losses"]) == 10
    assert killed["losses"] == pytest.approx(whole["losses"][:6], abs=1e-6)
    assert resumed["losses"] == pytest.approx(whole["losses"][4:], abs=1e-6)
    assert resumed["peak"] <= 1.05 * whole["peak"]  # type: ignore[operator]
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "killed" / "model.safetensors"
    ).read_bytes()


def test_checkpoint_of_another_model_is_rejected(tmp_path: Path) -> None:
    model = tiny.transformer().requires_grad_(True)
    model.patch.weight.square().sum().backward()
    optimizers = muon_and_adamw(model, muon_lr=0.1, learning_rate=0.1, weight_decay=0.0)
    for optimizer in optimizers:
        optimizer.step()
    state = CheckpointFile(tmp_path)
    state.save(model, optimizers, 7)
    other = tiny.transformer(seed=1).requires_grad_(True)
    fresh = muon_and_adamw(other, muon_lr=0.1, learning_rate=0.1, weight_decay=0.0)
    state.restore(other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for old, new in zip(optimizers, fresh, strict=True):
        states = zip(old.state_dict()["state"].values(), new.state_dict()["state"].values(), strict=True)
        assert all(torch.equal(a[key], b[key]) for a, b in states for key in a)
    with pytest.raises(ValueError, match="is the checkpoint of another model"):
        state.restore(torch.nn.Linear(2, 2), [])


class _Stopped:
    """A progress bar whose user presses Ctrl-C."""

    def track(self, items: Iterable[Any], description: str, total: int | None = None, done: int = 0) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 1:
                raise KeyboardInterrupt
            yield item


def test_keyboard_interrupt_propagates_and_run_resumes(tmp_path: Path) -> None:
    """Lightning alone would exit the process, and the command could not print how to resume."""
    encoder = tiny.write_autoencoder(tmp_path / "autoencoder")
    dataset = tiny.write_dataset(tmp_path / "dataset", encoder)
    settings = BaseTraining(
        model=tiny.MODEL, steps=3, batch=1, clip_latents=4, crop_steps=0, checkpoint_steps=1, autoencoder=str(encoder)
    )
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            train_base(dataset, tmp_path / "base", settings, _Stopped())
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning turns it off
    assert train_base(dataset, tmp_path / "base", settings)["steps"] == 3
