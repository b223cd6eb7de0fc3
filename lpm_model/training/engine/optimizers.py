"""Optimizers and their learning-rate schedules."""

import math
from collections.abc import Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lpm_model.training.engine.muon import ShardedMuon, StackedMuon

NEWTON_SCHULZ_STEPS = 3
"""Newton-Schulz iterations of Muon: three instead of five lose 0.5 % of its gain and save 10 % of a tiny step."""
FINAL_LR_FRACTION = 0.05
"""Final learning rate of the cosine schedule, as a fraction of the peak."""


def muon_and_adamw(
    transformer: nn.Module, *, muon_lr: float, learning_rate: float, weight_decay: float
) -> list[Optimizer]:
    """Build Muon (https://kellerjordan.github.io/posts/muon/) for the matrices of the blocks and AdamW for the rest.

    Frozen parameters (`requires_grad` False) are skipped; an optimizer without parameters is omitted.

    Args:
        transformer: a module with `blocks`.
        muon_lr: peak learning rate of Muon.
        learning_rate: peak learning rate of AdamW: embeddings, norms, biases, head.
        weight_decay: weight decay of both.
    """
    blocks: nn.Module = transformer.blocks  # type: ignore[assignment]
    trainable = {id(weight) for weight in transformer.parameters() if weight.requires_grad}
    linear = [module.weight for module in blocks.modules() if isinstance(module, nn.Linear)]
    matrices = [weight for weight in linear if id(weight) in trainable]
    rest = [w for w in transformer.parameters() if id(w) in trainable - {id(weight) for weight in matrices}]
    optimizers: list[Optimizer] = []
    if matrices:
        muon = ShardedMuon if isinstance(matrices[0], DTensor) else StackedMuon
        optimizers.append(muon(matrices, muon_lr, weight_decay=weight_decay, ns_steps=NEWTON_SCHULZ_STEPS))
    if rest:
        optimizers.append(torch.optim.AdamW(rest, learning_rate, (0.9, 0.95), weight_decay=weight_decay, fused=True))
    return optimizers


def with_schedule(
    optimizer: Optimizer, steps: int, warmup_steps: int, start: int = 0, *, constant: bool = False
) -> dict[str, Any]:
    """Add a linear warm-up followed by a cosine decay (or a constant rate), in the form that Lightning expects.

    Args:
        optimizer: optimizer; its learning rate is the peak.
        steps: steps of the whole run.
        warmup_steps: steps of the linear warm-up.
        start: step that a resumed run continues from.
        constant: keep the peak after the warm-up.
    """

    def factor(index: int) -> float:
        step = index + start
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if constant:
            return 1.0
        done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return FINAL_LR_FRACTION + (1 - FINAL_LR_FRACTION) / 2 * (1 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def step_optimizers(module: lightning.LightningModule, weights: Iterable[Tensor], clip_norm: float) -> None:
    """Clip the gradient norm, step every optimizer and its schedule, and clear the gradients."""
    torch.nn.utils.clip_grad_norm_(weights, clip_norm)
    # Lightning returns a list, or the only one.
    pair: tuple[Any, Any] = (module.optimizers(), module.lr_schedulers())
    optimizers, schedules = (found if isinstance(found, list) else [found] for found in pair)
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        schedule.step()
    module.zero_grad()
