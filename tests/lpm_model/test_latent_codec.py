"""Latents relative to the character image: closed form and round trip."""

import torch

from lpm_model.latent_codec import from_anchor, to_anchor


def test_still_video_is_zero_after_latent_0() -> None:
    image = torch.randn(2, 4, 1, 3, 3)
    relative = to_anchor(image.expand(-1, -1, 5, -1, -1), 2.0)
    assert torch.equal(relative[:, :, :1], image)
    assert torch.equal(relative[:, :, 1:], torch.zeros(2, 4, 4, 3, 3))


def test_round_trip_and_scale() -> None:
    latents = torch.randn(2, 4, 5, 3, 3)
    relative = to_anchor(latents, 2.0)
    assert torch.allclose(relative[:, :, 1:], 2 * (latents[:, :, 1:] - latents[:, :, :1]))
    assert torch.allclose(from_anchor(relative[:, :, 1:], latents[:, :, :1], 2.0), latents[:, :, 1:], atol=1e-6)


def test_gain_0_leaves_latents_absolute() -> None:
    latents = torch.randn(1, 4, 3, 2, 2)
    assert to_anchor(latents, 0.0) is latents
    assert from_anchor(latents, latents[:, :, :1], 0.0) is latents
