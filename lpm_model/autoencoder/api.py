"""The protocol of video autoencoders, and the state of their streaming decoders."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(slots=True)
class DecoderState:
    """Features of earlier latent frames that the streaming decoder needs."""

    features: tuple[Tensor, ...]
    """Tensors [B, ...]; none at the start."""


class VideoAutoencoder(Protocol):
    """A causal video autoencoder: the tiny one of this package, or Wan's in the larger profiles."""

    digest: str

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell along each side."""
        ...

    @property
    def decoder_dtype(self) -> torch.dtype:
        """Type of the latents that the decoder takes."""
        ...

    def set_decoder_dtype(self, dtype: torch.dtype) -> None:
        """Run the decoder in another data type from now on."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """Encode [B, 3, 4k+1, H, W] in [-1, 1] to normalised latents [B, C, 1+k, h, w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, C, 1+k, h, w] to [B, 3, 4k+1, H, W] in [-1, 1]."""
        ...

    def init_decode(self, batch: int) -> DecoderState:
        """Return the state before the first latent."""
        ...

    def decode_step(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode the next n latents of a video.

        Args:
            latents: [B, C, n, h, w].
            state: from `init_decode` or the previous call; it is not changed.

        Returns:
            [B, 3, 4n, H, W] in [-1, 1], four frames a latent (the very first latent owns one frame, repeated four
            times), and the next state.
        """
        ...
