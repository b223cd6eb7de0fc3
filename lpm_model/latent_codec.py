"""Residual coding: latents as scaled residuals to the reference-image latent, so that a still background is zero.

A tiny model then spends its capacity on motion instead of on copying the person; the larger profiles, whose weights
come from Wan 2.1, keep absolute latents (gain 0).

B batch, C latent channels, F latent frames, h w latent grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lpm_model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class LatentCodec:
    """Converts between the autoencoder's absolute latents and what the model reads and writes."""

    gain: float
    """Brings residuals to about unit variance; 0 keeps latents absolute."""

    @classmethod
    def from_config(cls, config: ModelConfig) -> "LatentCodec":
        """Return the codec of a model with this config."""
        return cls(config.residual_gain)

    def encode(self, clip: Tensor) -> Tensor:
        """Encode a clip: latent 0, the reference image, stays absolute; the others become residuals to it.

        Args:
            clip: [B, C, 1 + F, h, w] absolute latents.

        Returns:
            [B, C, 1 + F, h, w].
        """
        if not self.gain:
            return clip
        image = clip[:, :, :1]
        return torch.cat([image, self.gain * (clip[:, :, 1:] - image)], dim=2)

    def decode(self, residuals: Tensor, image: Tensor) -> Tensor:
        """Decode the latent frames after the reference image.

        Args:
            residuals: [B, C, F, h, w].
            image: [B, C, 1, h, w] absolute latent of the reference image.

        Returns:
            [B, C, F, h, w] absolute latents.
        """
        return image + residuals / self.gain if self.gain else residuals

    def decode_clip(self, clip: Tensor) -> Tensor:
        """Undo `encode`.

        Args:
            clip: [B, C, 1 + F, h, w], latent 0 the reference image.

        Returns:
            [B, C, 1 + F, h, w] absolute latents.
        """
        image = clip[:, :, :1]
        return torch.cat([image, self.decode(clip[:, :, 1:], image)], dim=2)

    def rebase(self, residuals: Tensor, image: Tensor) -> Tensor:
        """Re-encode the end of a roll-out as a separate clip, whose reference image is its first latent frame.

        Args:
            residuals: [B, C, F, h, w] latents of the roll-out.
            image: [B, C, 1, h, w] reference image of the roll-out.

        Returns:
            [B, C, F, h, w] as `encode` returns it; latent 0 is detached.
        """
        first, rest = residuals[:, :, :1].detach(), residuals[:, :, 1:]
        return torch.cat([self.decode(first, image), rest - first if self.gain else rest], dim=2)
