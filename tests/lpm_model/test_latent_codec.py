"""Residual coding of latents: closed form and round trip."""

import torch

from lpm_model.latent_codec import LatentCodec


def test_encode_makes_a_still_video_zero_after_latent_0() -> None:
    image = torch.randn(2, 4, 1, 3, 3)
    residuals = LatentCodec(2.0).encode(image.expand(-1, -1, 5, -1, -1))
    assert torch.equal(residuals[:, :, :1], image)
    assert torch.equal(residuals[:, :, 1:], torch.zeros(2, 4, 4, 3, 3))


def test_decode_undoes_encode_and_the_gain_scales_residuals() -> None:
    codec, latents = LatentCodec(2.0), torch.randn(2, 4, 5, 3, 3)
    residuals = codec.encode(latents)
    assert torch.allclose(residuals[:, :, 1:], 2 * (latents[:, :, 1:] - latents[:, :, :1]))
    assert torch.allclose(codec.decode(residuals[:, :, 1:], latents[:, :, :1]), latents[:, :, 1:], atol=1e-6)
    assert torch.allclose(codec.decode_clip(residuals), latents, atol=1e-6)


def test_rebase_is_the_end_of_a_roll_out_encoded_as_a_clip() -> None:
    codec, image, absolute = LatentCodec(2.0), torch.randn(2, 4, 1, 3, 3), torch.randn(2, 4, 5, 3, 3)
    residuals = codec.encode(torch.cat([image, absolute], dim=2))[:, :, 1:]
    assert torch.allclose(codec.rebase(residuals, image), codec.encode(absolute), atol=1e-5)


def test_gain_0_keeps_latents_absolute() -> None:
    codec, latents = LatentCodec(0.0), torch.randn(1, 4, 3, 2, 2)
    assert codec.encode(latents) is latents
    assert codec.decode(latents, latents[:, :, :1]) is latents
    assert torch.equal(codec.rebase(latents, latents[:, :, :1]), latents)
