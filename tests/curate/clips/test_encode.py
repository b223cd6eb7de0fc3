"""Latents match the autoencoder's in full precision, whatever the processor's native matmul type."""

import cv2
import numpy as np
import torch

from components.curate.clips.encode import load_encoder
from lpm_model.autoencoder.load import load_autoencoder


def test_latents_are_within_one_percent_of_float32() -> None:
    rng = np.random.default_rng(4)
    large = cv2.resize(rng.integers(0, 255, (12, 20, 3)).astype(np.uint8), (160, 96), interpolation=cv2.INTER_CUBIC)
    clip = np.stack([large[16:80, 4 * at : 4 * at + 64] for at in range(9)])
    with torch.inference_mode():
        exact = load_autoencoder().encode(torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0)[0]
    found = load_encoder("").encode(clip)
    assert found.dtype == np.float16
    assert found.shape == exact.shape == (16, 3, 8, 8)
    assert np.abs(found - exact.numpy()).mean() < 0.01 * float(exact.std())
