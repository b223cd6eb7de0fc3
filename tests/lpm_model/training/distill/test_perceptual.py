"""The perceptual distance in features of the autoencoders' decoders."""

from pathlib import Path

import pytest
import torch

from lpm_model.autoencoder.api import VideoAutoencoder
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.training.distill.perceptual import decoder_distance
from tests.lpm_model import tiny
from tests.lpm_model.wan_folder import write_wan_autoencoder


@pytest.fixture(params=["tiny", "wan"])
def autoencoder(request: pytest.FixtureRequest, tmp_path: Path, encoder: Path) -> VideoAutoencoder:
    return load_autoencoder(encoder if request.param == "tiny" else write_wan_autoencoder(tmp_path / "vae"))


def test_decoder_features_grow_to_frame_resolution(autoencoder: VideoAutoencoder) -> None:
    latents = tiny.normal(2, 16, 2, 4, 4)
    features = autoencoder.decoder_features(latents)
    sides = [feature.shape[-1] for feature in features]
    assert sides == sorted(sides)
    assert sides[0] == 4
    assert sides[-1] >= 16
    assert len(features) >= 3
    again = autoencoder.decoder_features(latents)
    assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))


def test_decoder_distance_grows_with_error_and_its_gradient_reduces_it(autoencoder: VideoAutoencoder) -> None:
    target, off = tiny.normal(1, 16, 2, 4, 4), tiny.normal(1, 16, 2, 4, 4, seed=1)
    assert decoder_distance(autoencoder, target, target) == 0
    distances = [float(decoder_distance(autoencoder, target + share * off, target)) for share in (0.1, 0.3, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] > 0
    made = (target + 0.3 * off).requires_grad_()
    decoder_distance(autoencoder, made, target).backward()
    assert made.grad is not None
    stepped = made.detach() - 1e-2 * made.grad / made.grad.norm() * off.norm()
    assert decoder_distance(autoencoder, stepped, target) < distances[1]
    assert not any(weight.requires_grad for weight in autoencoder.parameters())


def test_autoencoder_without_features_is_rejected() -> None:
    with pytest.raises(ValueError, match="perceptual_weight=0"):
        decoder_distance(object(), tiny.normal(1), tiny.normal(1))  # type: ignore[arg-type]
