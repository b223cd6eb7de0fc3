"""Causal video autoencoder: frames in, latents out, and the streaming decode that serving runs.

B batch, F latent frames, T video frames (T = 4k + 1 for F = 1 + k), H W pixels, h w latent grid, C latent channels.

Four frames form one group and are the channels of a 2-D network, so that time needs no 3-D convolution;
a causal mix with the previous group is the only path between groups. The first frame is repeated to fill its group.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from lpm_model.autoencoder.api import DecoderState
from lpm_model.config import FRAMES_PER_LATENT, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """Shape of the tiny causal video autoencoder."""

    latent_channels: int = setting(16, help="Channels of a latent.")
    patch_px: int = setting(2, help="Pixels folded into channels before the first convolution.")
    encoder_widths: tuple[int, ...] = setting((32, 64, 160), help="Channels at each resolution, finest first.")
    decoder_widths: tuple[int, ...] = setting((48, 96, 216), help="Channels at each resolution, finest first.")
    depths: tuple[int, ...] = setting((1, 1, 2), help="Residual blocks at each resolution, finest first.")

    def __post_init__(self) -> None:
        if not len(self.encoder_widths) == len(self.decoder_widths) == len(self.depths):
            raise ValueError("encoder_widths, decoder_widths and depths must list the same number of resolutions")

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell along each side."""
        return int(self.patch_px * 2 ** (len(self.encoder_widths) - 1))


class _Norm(nn.Module):
    """Root-mean-square norm over channels at every pixel: local, so streaming and offline agree exactly."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * (self.scale * x.shape[1] ** 0.5)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(functional.silu(self.first(functional.silu(self.norm(x)))))
        return x + out


def _residuals(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width) for _ in range(depth)))


class _CausalMix(nn.Module):
    """Adds to each group a projection of itself and of the previous group."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.now = nn.Conv2d(width, width, 1)
        self.before = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, groups: int, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix the groups.

        Args:
            x: [B * groups, width, h, w].
            groups: groups of each row.
            previous: [B, width, h, w] normed group before the first; None at the start, where the first repeats itself.

        Returns:
            [B * groups, width, h, w], and the `previous` of the next call.
        """
        normed = self.norm(x).unflatten(0, (-1, groups))
        first = normed[:, :1] if previous is None else previous[:, None].to(normed.dtype)
        shifted = torch.cat([first, normed[:, :-1]], dim=1)
        out = x + self.now(functional.silu(normed.flatten(0, 1))) + self.before(functional.silu(shifted.flatten(0, 1)))
        return out, normed[:, -1]


class TinyVideoAutoencoder(nn.Module):
    """The small autoencoder for CPUs: 8x in space, 4x in time, causal."""

    def __init__(self, config: AutoencoderConfig, digest: str = "") -> None:
        super().__init__()
        self.config, self.digest = config, digest
        fold = 3 * FRAMES_PER_LATENT * config.patch_px**2
        e, d = config.encoder_widths, config.decoder_widths
        self.fold = nn.Conv2d(fold, e[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(e, e[1:], strict=False))
        self.encoder = nn.ModuleList(_residuals(w, n) for w, n in zip(e, config.depths, strict=True))
        self.encoder_mix = _CausalMix(e[-1])
        self.to_latent = nn.Conv2d(e[-1], config.latent_channels, 3, padding=1)
        self.statistics = nn.BatchNorm2d(config.latent_channels, affine=False, momentum=0.01)
        self.from_latent = nn.Conv2d(config.latent_channels, d[-1], 3, padding=1)
        self.decoder_mix = _CausalMix(d[-1])
        self.decoder = nn.ModuleList(_residuals(w, n) for w, n in zip(d[::-1], config.depths[::-1], strict=True))
        ups = list(zip(d[::-1], d[::-1][1:], strict=False))
        self.up = nn.ModuleList(nn.Conv2d(a, 4 * b, 1) for a, b in ups)
        self.unfold = nn.Conv2d(d[0], fold, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.config.latent_channels

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent cell along each side."""
        return self.config.spatial_stride

    @property
    def decoder_dtype(self) -> torch.dtype:
        """Type of the latents that the decoder takes."""
        return self.from_latent.weight.dtype

    def set_decoder_dtype(self, dtype: torch.dtype) -> None:
        """Run the decoder in another data type from now on."""
        for part in (self.from_latent, self.decoder_mix, self.decoder, self.up, self.unfold):
            part.to(dtype)

    def encode(self, video: Tensor) -> Tensor:
        """Encode [B, 3, 4k+1, H, W] in [-1, 1] to normalised latents [B, C, 1+k, h, w].

        Raises:
            ValueError: a number of frames or a size that does not fit.
        """
        batch, _, frames, height, width = video.shape
        stride = self.config.spatial_stride
        if frames % FRAMES_PER_LATENT != 1 or height % stride or width % stride:
            raise ValueError(f"video of {frames} frames at {width}x{height}: need 4k+1 frames and sides in {stride}s")
        filled = torch.cat([video[:, :, :1].expand(-1, -1, FRAMES_PER_LATENT - 1, -1, -1), video], dim=2)
        groups = filled.shape[2] // FRAMES_PER_LATENT
        x = rearrange(filled, "b c (g t) h w -> (b g) (t c) h w", g=groups)
        x = functional.pixel_unshuffle(x, self.config.patch_px).contiguous(memory_format=torch.channels_last)
        x = self.encoder[0](self.fold(x))
        for down, blocks in zip(self.down, self.encoder[1:], strict=True):
            x = blocks(down(x))
        x, _ = self.encoder_mix(x, groups, None)
        latents: Tensor = self.statistics(self.to_latent(x).float())
        return rearrange(latents, "(b g) c h w -> b c g h w", b=batch)

    def init_decode(self, batch: int) -> DecoderState:
        """Return the state before the first latent."""
        return DecoderState(features=())

    def decode_step(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode the next latents [B, C, n, h, w] to [B, 3, 4n, H, W], see `VideoAutoencoder.decode_step`."""
        batch = latents.shape[0]
        depths, previous = self._decoder_depths(latents, state)
        x = functional.pixel_shuffle(self.unfold(depths[-1]), self.config.patch_px).float()
        frames = rearrange(x, "(b g) (t c) h w -> b c (g t) h w", b=batch, t=FRAMES_PER_LATENT)
        return frames, DecoderState(features=(previous,))

    def _decoder_depths(self, latents: Tensor, state: DecoderState) -> tuple[list[Tensor], Tensor]:
        """Features of each decoder resolution, [B n, width, rows, columns], and those that the next latent needs."""
        x = rearrange(latents, "b c g h w -> (b g) c h w").contiguous(memory_format=torch.channels_last)
        before = state.features[0] if state.features else None
        x, previous = self.decoder_mix(self.from_latent(x), latents.shape[2], before)
        depths = [self.decoder[0](x)]
        for up, blocks in zip(self.up, self.decoder[1:], strict=True):
            depths.append(blocks(functional.pixel_shuffle(up(depths[-1]), 2)))
        return depths, previous

    def decoder_features(self, latents: Tensor) -> list[Tensor]:
        """Return decoder features [B n, width, rows, columns] of latents [B, C, n, h, w], coarsest first."""
        depths, _ = self._decoder_depths(latents.to(self.decoder_dtype), self.init_decode(latents.shape[0]))
        return depths

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, C, 1+k, h, w] to [B, 3, 4k+1, H, W] in [-1, 1]."""
        frames, _ = self.decode_step(latents, self.init_decode(latents.shape[0]))
        return frames[:, :, FRAMES_PER_LATENT - 1 :]


def build_autoencoder(config: AutoencoderConfig) -> TinyVideoAutoencoder:
    """Create an autoencoder with random weights."""
    return TinyVideoAutoencoder(config)
