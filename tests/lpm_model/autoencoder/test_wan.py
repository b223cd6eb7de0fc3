"""Wan's autoencoder equals diffusers, in steps of any size, without state on the module."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st

from lpm_model.autoencoder.api import DecoderState, VideoAutoencoder
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.autoencoder.wan import WEIGHTS, WanVideoAutoencoder
from lpm_model.online import OnlineModel
from tests.lpm_model import tiny
from tests.lpm_model.tiny import normal
from tests.lpm_model.wan_folder import small_vae, write_wan_autoencoder

VIDEO = normal(2, 3, 17, 16, 24, seed=1).clamp(-1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan_autoencoder(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def wan(folder: Path) -> WanVideoAutoencoder:
    loaded = load_autoencoder(folder)
    assert isinstance(loaded, WanVideoAutoencoder)
    return loaded


def normalised(latents: torch.Tensor, vae: AutoencoderKLWan) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (latents - mean) / std


@torch.no_grad()
def test_wan_autoencoder_equals_diffusers(wan: WanVideoAutoencoder) -> None:
    peer = small_vae()
    plain = peer.encode(VIDEO).latent_dist.mode()
    latents = wan.encode(VIDEO)
    assert latents.shape == (2, 16, 5, 2, 3)
    assert torch.allclose(latents, normalised(plain, peer), atol=1e-5)
    assert torch.allclose(wan.decode(latents), peer.decode(plain).sample, atol=1e-4)
    assert float(wan.decode(latents).std()) > 0.01


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
@settings(max_examples=10, deadline=None)
@torch.no_grad()
def test_steps_of_any_size_equal_the_whole_video(plan: list[int]) -> None:
    model = WanVideoAutoencoder(small_vae())
    count = sum(plan)
    video, latents = normal(1, 3, 4 * count + 1, 16, 16, seed=5).clamp(-1, 1), normal(1, 16, 1 + count, 2, 2, seed=4)
    encoder, decoder, encoded, decoded = model.init_encode(), model.init_decode(1), [], []
    for video_piece in video.split([4 * plan[0] + 1] + [4 * n for n in plan[1:]], dim=2):
        part, encoder = model.encode_step(video_piece, encoder)
        encoded.append(part)
    for latent_piece in latents.split([plan[0] + 1, *plan[1:]], dim=2):
        part, decoder = model.decode_step(latent_piece, decoder)
        decoded.append(part)
    assert torch.allclose(torch.cat(encoded, dim=2), model.encode(video), atol=1e-5)
    assert torch.allclose(torch.cat(decoded, dim=2)[:, :, 3:], model.decode(latents), atol=1e-5)


@torch.no_grad()
def test_interleaved_videos_share_one_module(wan: WanVideoAutoencoder) -> None:
    latents = [normal(1, 16, 4, 2, 3, seed=seed) for seed in (6, 7)]
    states, parts = [wan.init_decode(1), wan.init_decode(1)], ([], [])
    for step in range(4):
        for row in range(2):
            decoded, states[row] = wan.decode_step(latents[row][:, :, step : step + 1], states[row])
            parts[row].append(decoded)
    for row in range(2):
        assert torch.allclose(torch.cat(parts[row], dim=2)[:, :, 3:], wan.decode(latents[row]), atol=1e-5)


@torch.no_grad()
def test_rows_at_different_positions_share_one_state(wan: WanVideoAutoencoder) -> None:
    """After the first latent every feature keeps its shape, so that rows at different positions share a state."""
    latents = normal(2, 16, 4, 2, 3, seed=8)
    _, first = wan.decode_step(latents[:, :, :1], wan.init_decode(2))
    _, later = wan.decode_step(latents[:, :, 1:3], first)
    assert [f.shape for f in first.features] == [f.shape for f in later.features]
    pairs = zip(first.features, later.features, strict=True)
    mixed = DecoderState(features=tuple(torch.stack([a[0], b[1]]) for a, b in pairs))
    decoded, _ = wan.decode_step(latents[:, :, 3:], mixed)
    fresh, _ = wan.decode_step(latents[:, :, 3:], first)
    old, _ = wan.decode_step(latents[:, :, 3:], later)
    assert torch.allclose(decoded, torch.stack([fresh[0], old[1]]), atol=1e-5)


def test_online_model_streams_with_wan_autoencoder(folder: Path) -> None:
    online = OnlineModel(tiny.MODEL, tiny.online_config(), load_autoencoder(folder), tiny.SIZE_PX).eval()
    image = torch.randint(0, 255, (tiny.SIZE_PX, tiny.SIZE_PX, 3), dtype=torch.uint8).numpy()
    state = online.init_state(online.character(image))
    voice = tiny.voice(online.chunk_samples + online.lookahead_samples)
    with torch.no_grad():
        frames, _ = online.step(state, voice, voice)
    assert frames.shape == (1, online.chunk_frames, tiny.SIZE_PX, tiny.SIZE_PX, 3)


def test_decoder_runs_in_bfloat16(folder: Path) -> None:
    model: VideoAutoencoder = load_autoencoder(folder)
    latents = normal(1, 16, 3, 2, 2, seed=9)
    with torch.no_grad():
        exact = model.decode(latents)
        model.set_decoder_dtype(torch.bfloat16)
        assert model.decoder_dtype == torch.bfloat16
        assert torch.allclose(model.decode(latents), exact, atol=0.1)


def test_load_errors_name_the_cause(folder: Path, wan: WanVideoAutoencoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="16 frames at 24x16: need 4n \\+ 1 frames"):
        wan.encode(VIDEO[:, :, :16])
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=f"{WEIGHTS} is missing"):
        load_autoencoder(tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="does not load"):
        load_autoencoder(tmp_path)
    with pytest.raises(ValueError, match=r"Wan 2\.2"):
        WanVideoAutoencoder(
            AutoencoderKLWan(
                base_dim=8, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True], is_residual=True
            )
        )
