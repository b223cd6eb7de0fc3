"""Latents told relative to the character image, so that what does not move is zero and needs no learning.

A tiny model spends its capacity on motion instead of on copying the person; the larger profiles, whose weights come
from Wan 2.1, keep absolute latents (gain 0).
"""

import torch
from torch import Tensor


def to_anchor(latents: Tensor, gain: float) -> Tensor:
    """Latent 0 stays; the others become gain times their difference to it.

    Args:
        latents: [B, channels, F, h, w], latent 0 the anchor.
        gain: brings differences to about unit variance; 0 leaves everything absolute.
    """
    if not gain:
        return latents
    anchor = latents[:, :, :1]
    return torch.cat([anchor, gain * (latents[:, :, 1:] - anchor)], dim=2)


def from_anchor(relative: Tensor, anchor: Tensor, gain: float) -> Tensor:
    """Absolute latents [B, channels, F, h, w] of relative ones and the anchor [B, channels, 1, h, w]."""
    return anchor + relative / gain if gain else relative
