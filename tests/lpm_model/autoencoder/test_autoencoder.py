"""The video autoencoder: streaming decode, causality, folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lpm_model.autoencoder.load import copy_autoencoder, load_autoencoder
from lpm_model.autoencoder.tiny import AutoencoderConfig, TinyVideoAutoencoder
from lpm_model.digests import file_digest
from tests.lpm_model.tiny import normal

VIDEO = normal(2, 3, 13, 16, 24, seed=1).clamp(-1, 1)
LATENTS = normal(2, 16, 5, 2, 3, seed=2)


def test_encode_and_decode_shapes(encoder: TinyVideoAutoencoder) -> None:
    latents = encoder.encode(VIDEO)
    assert latents.shape == (2, 16, 4, 2, 3)
    assert encoder.decode(latents).shape == VIDEO.shape
    assert encoder.config.spatial_stride == 8


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_decode_step_equals_whole_decode(plan: list[int]) -> None:
    from tests.lpm_model.tiny import autoencoder

    model = autoencoder()
    latents = normal(2, 16, sum(plan), 2, 3, seed=3)
    state, parts = model.init_decode(2), []
    for piece in latents.split(plan, dim=2):
        frames, state = model.decode_step(piece, state)
        parts.append(frames)
    assert torch.allclose(torch.cat(parts, dim=2)[:, :, 3:], model.decode(latents), atol=1e-5)


def test_decode_is_causal(encoder: TinyVideoAutoencoder) -> None:
    changed = LATENTS.clone()
    changed[:, :, 3] += 1
    before, after = encoder.decode(LATENTS), encoder.decode(changed)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.allclose(before[:, :, 9:13], after[:, :, 9:13], atol=1e-3)


@pytest.mark.parametrize(("frame", "latent"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (12, 3)])
def test_encode_frame_affects_own_and_next_latent_only(encoder: TinyVideoAutoencoder, frame: int, latent: int) -> None:
    changed = VIDEO.clone()
    changed[:, :, frame] *= -1
    touched = (encoder.encode(VIDEO) != encoder.encode(changed)).flatten(3).any(-1).any(1)
    assert touched.tolist() == [[latent <= f <= latent + 1 for f in range(4)]] * 2


def test_encode_image_as_video_of_one_frame(encoder: TinyVideoAutoencoder) -> None:
    assert torch.allclose(encoder.encode(VIDEO[:, :, :1]), encoder.encode(VIDEO)[:, :, :1], atol=1e-5)
    assert encoder.decode(LATENTS[:, :, :1]).shape[2] == 1


def test_batch_rows_are_independent(encoder: TinyVideoAutoencoder) -> None:
    assert torch.allclose(encoder.encode(VIDEO)[1:], encoder.encode(VIDEO[1:]), atol=1e-5)
    assert torch.allclose(encoder.decode(LATENTS)[1:], encoder.decode(LATENTS[1:]), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 6, 16, 16), (1, 3, 5, 16, 20)])
def test_encode_rejects_wrong_frame_counts_and_sides(encoder: TinyVideoAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="4k\\+1 frames and sides in 8s"):
        encoder.encode(torch.zeros(shape))


def test_config_rejects_unequal_numbers_of_resolutions() -> None:
    with pytest.raises(ValueError, match="same number of resolutions"):
        AutoencoderConfig(encoder_widths=(8, 8), decoder_widths=(8, 8, 8))


def test_loaded_autoencoder_has_digest_of_its_weights(encoder_folder: Path, encoder: TinyVideoAutoencoder) -> None:
    loaded = load_autoencoder(encoder_folder)
    assert loaded.digest == file_digest(encoder_folder / "model.safetensors")
    assert len(loaded.digest) == 64
    assert torch.allclose(loaded.encode(VIDEO), encoder.encode(VIDEO), atol=1e-5)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_copy_autoencoder_copies_the_same_model(encoder_folder: Path, tmp_path: Path) -> None:
    copy_autoencoder(encoder_folder, tmp_path / "model")
    assert load_autoencoder(tmp_path / "model" / "autoencoder").digest == load_autoencoder(encoder_folder).digest


@pytest.mark.parametrize("keep", [0, 5, 200, -100])
def test_load_names_truncated_weights(encoder_folder: Path, tmp_path: Path, keep: int) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut/model\.safetensors is damaged"):
        load_autoencoder(folder)


def test_load_names_weights_of_wrong_shape(encoder_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "latent_channels": 8}))
    with pytest.raises(ValueError, match=r"other/model\.safetensors: .* has shape"):
        load_autoencoder(folder)
    (folder / "config.json").write_text(json.dumps({**config, "depths": [1, 1, 2]}))
    with pytest.raises(ValueError, match=r"other/model\.safetensors does not fit .* missing"):
        load_autoencoder(folder)


def test_load_names_missing_and_unexpected_tensors(encoder_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "extra")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "surprise": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="unexpected \\['surprise'\\]"):
        load_autoencoder(folder)


def test_load_rejects_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no autoencoder"):
        load_autoencoder(tmp_path)
