"""A distillation in one of several processes, with a record of every step."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from lpm_model.training.distill import long_rollout, rollout_samplers
from lpm_model.training.distill.config import Distillation
from lpm_model.training.distill.stages import DmdModule, OdeModule, StageModule
from lpm_model.training.distill.train import distill_online


def distill_and_record(base: Path, dataset: Path, folder: Path, settings: Distillation) -> dict[str, float]:
    """Distil, and write `notes-RANK.json`: weights after each step, exit indices, data."""
    notes: dict[str, list[Any]] = {"weights": [], "exits": [], "data": []}
    step_optimizer, draw_exit_index = StageModule.step_optimizer, rollout_samplers.draw_exit_index

    def recorded_step_optimizer(self: StageModule, *arguments: Any) -> None:
        step_optimizer(self, *arguments)
        state = [*self.weights, *(self.critic_weights if isinstance(self, DmdModule) else ())]
        digest = hashlib.sha256(b"".join(weight.detach().numpy().tobytes() for weight in state))
        notes["weights"].append(digest.hexdigest())

    def recorded_exit(*arguments: Any) -> int:
        notes["exits"].append(draw_exit_index(*arguments))
        return int(notes["exits"][-1])

    StageModule.step_optimizer = recorded_step_optimizer  # type: ignore[method-assign]
    rollout_samplers.draw_exit_index = long_rollout.draw_exit_index = recorded_exit
    for kind in (OdeModule, DmdModule):
        plain = kind.training_step

        def recorded_training_step(self: Any, batch: Any, index: int, plain: Any = plain) -> torch.Tensor:
            seen = batch.clean if hasattr(batch, "clean") else batch.latents
            notes["data"].append(float(seen.double().abs().sum()))
            return plain(self, batch, index)

        kind.training_step = recorded_training_step  # type: ignore[method-assign]
    metrics = distill_online(base, dataset, folder, settings)
    (folder / f"notes-{os.environ['RANK']}.json").write_text(json.dumps(notes))
    return metrics
