"""What the platform asks of any video autoencoder, and the state of its streaming decoder."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(slots=True)
class DecoderState:
    """What the streaming decoder remembers of the latent frames before."""

    features: tuple[Tensor, ...]
    """Tensors [B, ...]; none at the start."""


class VideoAutoencoder(Protocol):
    """What the platform asks of any video autoencoder (the tiny one here, Wan's in the larger profiles)."""

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
    def decoder_type(self) -> torch.dtype:
        """Type of the latents that the decoder takes."""
        ...

    def decode_in(self, dtype: torch.dtype) -> None:
        """Run the decoder in another type from now on."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, 4k+1, H, W] in [-1, 1] to normalised latents [B, C, 1+k, h, w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, 1+k, h, w] to [B, 3, 4k+1, H, W] in [-1, 1]."""
        ...

    def init_decode(self, batch: int) -> DecoderState:
        """The state before the first latent."""
        ...

    def decode_step(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """[B, C, n, h, w] to the 4n frames they own, [B, 3, 4n, H, W]; the very first latent owns one, four times."""
        ...
