"""A perceptual distance of latents without a network of its own: between the features of the autoencoder's decoder.

It stands in for LPIPS of decoded pictures. Source: https://arxiv.org/abs/2411.04873 (latent perceptual loss); features
are normalised by the target's standard deviation in each channel, and every depth counts the same.
"""

import torch
from torch import Tensor

from lpm_model.autoencoder.api import VideoAutoencoder

LEAST_STD = 1e-2
"""Standard deviation of a feature below which its channel counts as constant."""


def decoder_distance(autoencoder: VideoAutoencoder, latents: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of normalised decoder features, over depths.

    Args:
        autoencoder: one with `decoder_features`.
        latents: [B, channels, n, h, w], absolute; gradients flow into them.
        target: the same without gradient.

    Raises:
        ValueError: the autoencoder offers no features.
    """
    features = getattr(autoencoder, "decoder_features", None)
    if features is None:
        raise ValueError(f"{type(autoencoder).__name__} offers no decoder features: set off_policy.perceptual_weight=0")
    with torch.no_grad():
        wanted: list[Tensor] = features(target)
    parts = []
    for made, like in zip(features(latents), wanted, strict=True):
        axes = tuple(axis for axis in range(like.dim()) if axis != 1)
        scale = like.float().std(dim=axes, keepdim=True).clamp(min=LEAST_STD)
        parts.append(((made.float() - like.float()) / scale).square().mean())
    return torch.stack(parts).mean()
