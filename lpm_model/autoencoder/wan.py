"""Wan 2.1's causal video autoencoder through diffusers, with its streaming state outside the module.

diffusers keeps features between latent frames in fields of the module, so that one module serves one video at a time.
Here they are a value that the caller holds: any number of sessions share the weights, and a video can be encoded and
decoded in pieces of any size with the same result as in one piece.
Layout: https://github.com/huggingface/diffusers, AutoencoderKLWan (what Wan-AI publishes under `vae/`).

B batch, C latent channels, T = 4k + 1 video frames, H W pixels, h w latent grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lpm_model.autoencoder.api import DecoderState
from lpm_model.config import FRAMES_PER_LATENT
from lpm_model.digests import file_digest

WEIGHTS = "diffusion_pytorch_model.safetensors"
CACHED_FRAMES = 2
"""Earlier frames that a causal convolution of width 3 reads."""


@dataclass(slots=True)
class EncoderState:
    """Features of earlier frames that the streaming encoder needs."""

    features: tuple[Tensor, ...]
    """Tensors [B, ...]; none at the start."""


class WanVideoAutoencoder(nn.Module):
    """8x in space, 4x in time, causal; latents are normalised with Wan's own statistics.

    Args:
        vae: an AutoencoderKLWan of the 2.1 kind.
        digest: identifies the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vae: Any, digest: str = "") -> None:
        super().__init__()
        if vae.config.patch_size is not None or vae.config.is_residual:
            raise ValueError("this is Wan 2.2's autoencoder: give the vae folder of Wan 2.1")
        self.vae, self.digest = vae, digest
        for name, values in (("mean", vae.config.latents_mean), ("std", vae.config.latents_std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1, 1), persistent=False)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.z_dim)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell along each side."""
        return int(self.vae.config.scale_factor_spatial)

    @property
    def decoder_dtype(self) -> torch.dtype:
        """Type of the latents that the decoder takes."""
        kind: torch.dtype = self.vae.post_quant_conv.weight.dtype
        return kind

    def set_decoder_dtype(self, dtype: torch.dtype) -> None:
        """Run the decoder in another data type from now on."""
        self.vae.decoder.to(dtype)
        self.vae.post_quant_conv.to(dtype)

    def encode(self, video: Tensor) -> Tensor:
        """Encode [B, 3, 4k+1, H, W] in [-1, 1] to normalised latents [B, C, 1+k, h, w]."""
        latents, _ = self.encode_step(video, self.init_encode())
        return latents

    def init_encode(self) -> EncoderState:
        """Return the state before the first frame."""
        return EncoderState(features=())

    def encode_step(self, video: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Encode the next frames of a video.

        Args:
            video: [B, 3, 4n+1, H, W] at the start, [B, 3, 4n, H, W] later, in [-1, 1].
            state: from `init_encode` or the previous call; it is not changed.

        Returns:
            Normalised latents [B, C, 1+n or n, h, w], and the next state.

        Raises:
            ValueError: a number of frames or a size that does not fit.
        """
        first = 0 if state.features else 1
        frames, sides = video.shape[2] - first, video.shape[3:]
        if frames < 0 or frames % FRAMES_PER_LATENT or any(side % self.spatial_stride for side in sides):
            want = f"{FRAMES_PER_LATENT}n{' + 1' if first else ''} frames and sides in {self.spatial_stride}s"
            raise ValueError(f"video of {video.shape[2]} frames at {sides[1]}x{sides[0]}: need {want}")
        kind = self.vae.quant_conv.weight.dtype
        features: Sequence[Any] = state.features or [None] * self.vae._cached_conv_counts["encoder"]
        encoded = []
        for piece in video.to(kind).split([1] * first + [FRAMES_PER_LATENT] * (frames // FRAMES_PER_LATENT), dim=2):
            out, features = _run(self.vae.encoder, piece, features)
            encoded.append(self.vae.quant_conv(out).chunk(2, dim=1)[0].float())
        return (torch.cat(encoded, dim=2) - self.mean) / self.std, EncoderState(features=tuple(features))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, C, 1+k, h, w] to [B, 3, 4k+1, H, W] in [-1, 1]."""
        frames, _ = self.decode_step(latents, self.init_decode(latents.shape[0]))
        return frames[:, :, FRAMES_PER_LATENT - 1 :]

    def init_decode(self, batch: int) -> DecoderState:
        """Return the state before the first latent."""
        return DecoderState(features=())

    def decode_step(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode the next latents [B, C, n, h, w] to [B, 3, 4n, H, W], see `VideoAutoencoder.decode_step`."""
        features: Sequence[Any] = state.features
        if not features:
            features = [None] * self.vae._cached_conv_counts["decoder"]
        raw = (latents.float() * self.std + self.mean).to(self.decoder_dtype)
        decoded = []
        for piece in self.vae.post_quant_conv(raw).split(1, dim=2):
            out, features = _run(self.vae.decoder, piece, features)
            decoded.append(out.float().clamp(-1, 1))
            features = self._static(features, latents.shape)
        if not state.features:
            decoded[0] = decoded[0].expand(-1, -1, FRAMES_PER_LATENT, -1, -1)
        return torch.cat(decoded, dim=2), DecoderState(features=tuple(features))

    def decoder_features(self, latents: Tensor) -> list[Tensor]:
        """Return the decoder's features of latents [B, C, n, h, w], coarsest first.

        Returns:
            [B, width, frames, rows, columns] for each resolution.
        """
        outputs: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda _, __, out: outputs.append(out)) for block in self._depths()]
        try:
            self.decode_step(latents, self.init_decode(latents.shape[0]))
        finally:
            for hook in hooks:
                hook.remove()
        depths = len(hooks)
        return [torch.cat(outputs[depth::depths], dim=2) for depth in range(depths)]

    def _depths(self) -> list[nn.Module]:
        """Parts of the decoder, each at one resolution."""
        return [self.vae.decoder.mid_block, *self.vae.decoder.up_blocks]

    def _static(self, features: Sequence[Any], shape: torch.Size) -> list[Tensor]:
        """Pad features to CACHED_FRAMES frames each, from the first latent on (zeros before the video's start).

        diffusers marks a temporal upsampling that has not begun by a string; zeros are equivalent for its convolution.
        """
        ups = [m for block in self.vae.decoder.up_blocks for m in (block.upsamplers or ())]
        scales = iter([(m.dim, 2**i) for i, m in enumerate(ups) if m.mode == "upsample3d"])
        known = next(f for f in features if isinstance(f, Tensor))
        out = []
        for feature in features:
            if isinstance(feature, Tensor):
                out.append(functional.pad(feature, (0, 0, 0, 0, CACHED_FRAMES - feature.shape[2], 0)))
            else:
                channels, scale = next(scales)
                out.append(known.new_zeros(shape[0], channels, CACHED_FRAMES, shape[3] * scale, shape[4] * scale))
        return out


def _run(part: nn.Module, x: Tensor, features: Sequence[Any]) -> tuple[Tensor, list[Any]]:
    """Run one piece through the encoder or decoder; returns its output and the features of its causal convolutions."""
    cached, used = list(features), [0]
    out: Tensor = part(x, feat_cache=cached, feat_idx=used)
    return out, cached[: used[0]]


def load_wan_autoencoder(folder: Path) -> WanVideoAutoencoder:
    """Load the `vae` folder of Wan 2.1 (config.json, diffusion_pytorch_model.safetensors).

    Raises:
        ValueError: diffusers is missing, a file is missing or damaged, or weights that do not fit.
    """
    from safetensors import SafetensorError

    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise ValueError(f"{folder} needs diffusers: pip install 'lpm[train]'") from error
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{weights} is missing: copy the whole vae folder")
    try:
        vae = AutoencoderKLWan.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} does not load ({reason}): copy the whole vae folder again") from error
    return WanVideoAutoencoder(vae, file_digest(weights)).eval().requires_grad_(False)
