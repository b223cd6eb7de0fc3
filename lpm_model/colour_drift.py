"""Colour guard: takes a slow colour drift back from generated frames and leaves quick changes, such as light, alone.

The mean and the spread of each Lab channel are averaged over seconds and led back to those of the character image
(per-channel statistics as in Reinhard 2001, https://doi.org/10.1109/38.946629). It acts on what is shown only: the
history that the model sees is its own.

B batch, T frames, H W pixels. Lab is CIE 1976 under D65 of sRGB.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
"""Linear sRGB to XYZ (IEC 61966-2-1)."""
_WHITE = (0.95047, 1.0, 1.08883)
_KNEE = 6 / 29
LEAST_SPREAD = 1.0
"""Channels that vary less (in Lab units) are shifted but not stretched."""


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """SRGB [..., 3] in [0, 1] to Lab [..., 3]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ rgb.new_tensor(_TO_XYZ).T / rgb.new_tensor(_WHITE)
    f = torch.where(xyz > _KNEE**3, xyz.clamp(min=_KNEE**3) ** (1 / 3), xyz / (3 * _KNEE**2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Lab [..., 3] to sRGB [..., 3], clipped to [0, 1]."""
    lightness, a, b = lab.unbind(-1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], dim=-1)
    xyz = torch.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29)) * lab.new_tensor(_WHITE)
    linear = (xyz @ torch.linalg.inv(lab.new_tensor(_TO_XYZ)).T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


@dataclass(frozen=True, slots=True)
class ColourState:
    """What the guard remembers of each row."""

    wanted: Tensor
    """[B, 2, 3] mean and spread of L, a, b in the character image."""
    recent: Tensor
    """[B, 2, 3] the same of the frames so far, averaged over seconds."""


def _statistics(lab: Tensor) -> Tensor:
    """[B, 2, 3] of Lab [B, T, H, W, 3]."""
    flat = lab.flatten(1, 3)
    return torch.stack([flat.mean(1), flat.std(1)], dim=1)


def _to_lab(video: Tensor) -> Tensor:
    return rgb_to_lab((video.float().permute(0, 2, 3, 4, 1) + 1) / 2)


def colour_state(image: Tensor) -> ColourState:
    """The state before the first frame; image [B, 3, T, H, W] in [-1, 1] as the decoder gives it."""
    wanted = _statistics(_to_lab(image))
    return ColourState(wanted=wanted, recent=wanted.clone())


def correct_colour_drift(
    video: Tensor, state: ColourState, *, share: float, seconds: float, averaged_s: float
) -> tuple[Tensor, ColourState]:
    """Correct frames.

    Args:
        video: [B, 3, T, H, W] in [-1, 1].
        state: from `colour_state` or the call before.
        share: of the drift that is taken back, 0 to 1.
        seconds: how long the frames last.
        averaged_s: time constant of the average.

    Returns:
        The corrected video and the next state.
    """
    lab = _to_lab(video)
    recent = state.recent + (1 - math.exp(-seconds / averaged_s)) * (_statistics(lab) - state.recent)
    (mean, spread), (wanted, wanted_spread) = recent.unbind(1), state.wanted.unbind(1)
    steady = torch.minimum(spread, wanted_spread) < LEAST_SPREAD
    stretch = torch.where(steady, torch.ones_like(spread), wanted_spread / spread.clamp(min=1e-6))
    mean, wanted, stretch = (x[:, None, None, None] for x in (mean, wanted, stretch))
    corrected = lab + share * ((lab - mean) * stretch + wanted - lab)
    return lab_to_rgb(corrected).permute(0, 4, 1, 2, 3) * 2 - 1, replace(state, recent=recent)
