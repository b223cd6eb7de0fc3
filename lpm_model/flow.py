"""Flow matching in closed form: x_sigma = (1 - sigma) x0 + sigma noise, velocity = noise - x0.

Sources: https://arxiv.org/abs/2210.02747 (flow matching), https://arxiv.org/abs/2403.03206 (time shift).
Sigmas broadcast against latents [B, C, F, h, w]: give them as [B, 1, F, 1, 1]. All functions return the latents' shape.
"""

import torch
from torch import Tensor


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the noisy sample at level sigma."""
    return (1 - sigma) * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """Return the training target d x / d sigma."""
    return noise - clean


def clean_from_velocity(noisy: Tensor, predicted: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean sample that a velocity points to."""
    return noisy - sigma * predicted


def euler_step(noisy: Tensor, predicted: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
    """Move along the predicted velocity from level sigma to level target."""
    return noisy + (target - sigma) * predicted


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Spend more steps at high noise: s k / (1 + (k - 1) s)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def schedule(steps: int, shift: float) -> Tensor:
    """Return the sigmas 1 ... 0 of an Euler sampler, [steps + 1]."""
    if steps < 1:
        raise ValueError(f"steps is {steps}: give at least 1")
    return shift_sigma(torch.linspace(1, 0, steps + 1), shift)
