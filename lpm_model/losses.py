"""Training losses as pure functions.

B batch, F latent frames.
"""

import torch
from torch import Tensor


def motion_weights(latents: Tensor, extra: float) -> Tensor:
    """Return loss weights [B, 1, 1, h, w] of mean one: cells that move fast (lips) weigh up to 1 + `extra` times more.

    Weights follow speed, not variance: a slowly swaying head changes most cells more than speech changes the lips.

    Args:
        latents: [B, channels, F, h, w].
        extra: 0 gives ones, and so does a single frame.
    """
    if latents.shape[2] < 2:
        return torch.ones_like(latents[:, :1, :1])
    speed = latents.diff(dim=2).square().mean(dim=(1, 2), keepdim=True)
    relative = speed / speed.amax(dim=(3, 4), keepdim=True).clamp(min=1e-6)
    weight = 1 + extra * relative
    return weight / weight.mean(dim=(3, 4), keepdim=True)


def training_weights(clean: Tensor, level: Tensor, extra: float, predicts: str) -> Tensor:
    """Return the weights [B, 1, F, h, w] of velocity errors in Base LPM's training: 0 where the latent is given.

    Args:
        clean: [B, channels, F, h, w].
        level: [B, 1, F, 1, 1] noise levels.
        extra: see `motion_weights`.
        predicts: `ModelConfig.predicts`; "clean" turns velocity errors into errors of clean latents.
    """
    weight = motion_weights(clean[:, :, 1:], extra) * (level > 0)
    return weight * level.square() if predicts == "clean" else weight


def flow_matching_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean squared error of velocities; weight broadcasts to [B, channels, F, h, w]."""
    full = weight.expand_as(target)
    return (full * (predicted.float() - target).square()).sum() / full.sum().clamp(min=1e-6)


def ode_regression_loss(clean: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean squared error between clean chunks of student and teacher (CausVid, arXiv 2412.07772).

    All are [B, channels, c, h, w]; the weight may broadcast.
    """
    return flow_matching_loss(clean, teacher, weight)


def dmd_gradient(sample: Tensor, real_clean: Tensor, fake_clean: Tensor) -> Tensor:
    """Return the gradient of distribution matching distillation for a student sample.

    g = (fake - real) / mean |sample - real|, the normaliser taken per row (Self-Forcing, arXiv 2506.08009;
    DMD, arXiv 2311.18828). Zero where critic and teacher agree.

    Args:
        sample: [B, channels, F, h, w] the student's clean latents.
        real_clean: the teacher's prediction from the re-noised sample.
        fake_clean: the critic's prediction from it.

    Returns:
        [B, channels, F, h, w].
    """
    axes = tuple(range(1, sample.dim()))
    normaliser = (sample - real_clean).abs().mean(dim=axes, keepdim=True).clamp(min=1e-6)
    return torch.nan_to_num((fake_clean - real_clean) / normaliser)


def dmd_loss(sample: Tensor, gradient: Tensor) -> Tensor:
    """Return a scalar loss whose gradient with respect to `sample` is `gradient` over the number of elements.

    Both are [B, channels, F, h, w].
    """
    target = (sample - gradient).detach()
    return 0.5 * (sample - target).square().mean()
