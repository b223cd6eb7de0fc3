"""Wan's autoencoder with small random weights, in a folder as diffusers writes it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from tests.lpm_model import tiny


def small_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return tiny.randomised(vae, 3, 0.05).eval()


def write_wan_autoencoder(folder: Path) -> Path:
    small_vae().save_pretrained(folder)
    return folder
