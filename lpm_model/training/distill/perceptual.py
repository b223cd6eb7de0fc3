"""A perceptual distance of latents in the feature space of the autoencoder's decoder; needs no other network.

It replaces LPIPS of decoded frames. Source: https://arxiv.org/abs/2411.04873 (latent perceptual loss); features are
normalised by the target's standard deviation in each channel, and all depths have equal weight.
"""

import torch
from torch import Tensor

from lpm_model.autoencoder.api import VideoAutoencoder

MIN_STD = 1e-2
"""Lower bound of a feature's standard deviation: channels below it count as constant."""


def decoder_distance(autoencoder: VideoAutoencoder, latents: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of normalised decoder features, averaged over depths.

    Args:
        autoencoder: one with `decoder_features`.
        latents: [B, channels, n, h, w], absolute; gradients flow into them.
        target: [B, channels, n, h, w], without gradient.

    Raises:
        ValueError: the autoencoder has no `decoder_features`.
    """
    features = getattr(autoencoder, "decoder_features", None)
    if features is None:
        raise ValueError(f"{type(autoencoder).__name__} has no decoder features: set off_policy.perceptual_weight=0")
    with torch.no_grad():
        target_features: list[Tensor] = features(target)
    parts = []
    for own, wanted in zip(features(latents), target_features, strict=True):
        axes = tuple(axis for axis in range(wanted.dim()) if axis != 1)
        scale = wanted.float().std(dim=axes, keepdim=True).clamp(min=MIN_STD)
        parts.append(((own.float() - wanted.float()) / scale).square().mean())
    return torch.stack(parts).mean()
