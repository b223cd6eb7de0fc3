"""Colour-drift correction: removes a slow colour drift from generated frames and keeps quick changes, such as light.

The mean and the spread of each Lab channel are averaged over seconds and matched to those of the reference image
(per-channel statistics as in Reinhard 2001, https://doi.org/10.1109/38.946629). Only the frames shown are corrected:
the model's own history stays as it is.

B batch, T frames, H W pixels. Lab is CIE 1976 under D65 of sRGB.
"""

import math
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
"""Linear sRGB to XYZ (IEC 61966-2-1)."""
_WHITE = (0.95047, 1.0, 1.08883)
_KNEE = 6 / 29
MIN_SPREAD = 1.0
"""Channels that vary less (in Lab units) are shifted but not stretched."""


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB [..., 3] in [0, 1] to Lab [..., 3]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ rgb.new_tensor(_TO_XYZ).T / rgb.new_tensor(_WHITE)
    f = torch.where(xyz > _KNEE**3, xyz.clamp(min=_KNEE**3) ** (1 / 3), xyz / (3 * _KNEE**2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert Lab [..., 3] to sRGB [..., 3], clipped to [0, 1]."""
    lightness, a, b = lab.unbind(-1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], dim=-1)
    xyz = torch.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29)) * lab.new_tensor(_WHITE)
    linear = (xyz @ torch.linalg.inv(lab.new_tensor(_TO_XYZ)).T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


@dataclass(frozen=True, slots=True)
class ColourState:
    """Colour statistics of each row."""

    target: Tensor
    """[B, 2, 3] mean and spread of L, a, b in the reference image."""
    average: Tensor
    """[B, 2, 3] the same of the frames so far, averaged over seconds."""


def _statistics(lab: Tensor) -> Tensor:
    """Mean and spread [B, 2, 3] of Lab [B, T, H, W, 3]."""
    flat = lab.flatten(1, 3)
    return torch.stack([flat.mean(1), flat.std(1)], dim=1)


def _to_lab(video: Tensor) -> Tensor:
    return rgb_to_lab((rearrange(video.float(), "b c t h w -> b t h w c") + 1) / 2)


def init_colour_state(image: Tensor) -> ColourState:
    """Create the state before the first frame; image [B, 3, T, H, W] in [-1, 1], as the decoder returns it."""
    target = _statistics(_to_lab(image))
    return ColourState(target=target, average=target.clone())


def correct_colour_drift(
    video: Tensor, state: ColourState, *, strength: float, seconds: float, time_constant_s: float
) -> tuple[Tensor, ColourState]:
    """Correct frames.

    Args:
        video: [B, 3, T, H, W] in [-1, 1].
        state: from `init_colour_state` or the previous call.
        strength: fraction of the drift that is removed, 0 to 1.
        seconds: duration of the frames.
        time_constant_s: of the moving average.

    Returns:
        The corrected video [B, 3, T, H, W] in [-1, 1], and the next state.
    """
    lab = _to_lab(video)
    average = state.average + (1 - math.exp(-seconds / time_constant_s)) * (_statistics(lab) - state.average)
    (mean, spread), (target, target_spread) = average.unbind(1), state.target.unbind(1)
    flat = torch.minimum(spread, target_spread) < MIN_SPREAD
    stretch = torch.where(flat, torch.ones_like(spread), target_spread / spread.clamp(min=1e-6))
    mean, target, stretch = (x[:, None, None, None] for x in (mean, target, stretch))
    corrected = lab + strength * ((lab - mean) * stretch + target - lab)
    return rearrange(lab_to_rgb(corrected), "b t h w c -> b c t h w") * 2 - 1, replace(state, average=average)
