"""The engine of the Online LPM, with an untrained model that is small enough to be quick."""

import json
from pathlib import Path

import numpy as np
import pytest

from serving.client import connect
from serving.config import ServingConfig
from serving.engine import make_engine

SIZE = 32


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from PIL import Image

    from lpm_model.autoencoder.tiny import AutoencoderConfig, TinyVideoAutoencoder
    from lpm_model.checkpoint import save_model
    from lpm_model.config import AudioConfig, ModelConfig, OnlineConfig, to_mapping
    from lpm_model.encoders.load import build_audio_encoder
    from lpm_model.online import OnlineModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("online")
    audio = AudioConfig()
    shape = AutoencoderConfig()
    config = ModelConfig(
        width=48, heads=2, layers=2, ffn_width=64, audio_width=build_audio_encoder(audio).width, audio=audio
    )
    online = OnlineConfig(window_latents=3)
    model = OnlineModel(config, online, TinyVideoAutoencoder(shape), SIZE)
    torch.nn.init.normal_(model.backbone.head.weight, std=0.1)  # an untrained head shows the same whatever the noise
    save_model(folder / "autoencoder", {"model": model.autoencoder}, to_mapping(shape), {})
    described = {"model": to_mapping(config), "online": to_mapping(online), "size_px": SIZE}
    save_model(folder, {"model": model.backbone}, described, {})
    for character_id, consent in (("ana", "consents/1"), ("bob", "")):
        home = folder / "characters" / character_id
        home.mkdir(parents=True)
        image = np.random.default_rng(1).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(image).save(home / "reference.png")
        (home / "character.json").write_text(json.dumps({"consent_ref": consent, "name": character_id.title()}))
    return folder


def test_lpm_engine_is_deterministic_by_seed(model_folder: Path, voice) -> None:
    from lpm_model.digests import model_digest

    engine = make_engine("lpm", model_folder)
    assert engine.model_digest == model_digest(model_folder)
    window = np.resize(voice(4000), engine.chunk_samples + engine.lookahead_samples)
    silence = np.zeros_like(window)
    one, two, three = (engine.open("ana", seed) for seed in (7, 7, 8))
    frames = [session.step(window, silence, "smile") for session in (one, two, three)]
    assert frames[0].shape == (engine.chunk_frames, SIZE, SIZE, 3)
    assert frames[0].dtype == np.uint8
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])
    one.close()
    with pytest.raises(ValueError, match="closed"):
        one.step(window, silence, "")


def test_characters_without_consent_are_not_offered(model_folder: Path) -> None:
    assert make_engine("lpm", model_folder).characters() == ["ana"]
    assert make_engine("lpm", model_folder, ServingConfig(require_consent=False)).characters() == ["ana", "bob"]


async def test_lpm_engine_runs_a_live_conversation(start, model_folder: Path, voice) -> None:
    async with start(engine=make_engine("lpm", model_folder)) as running, connect(running.url, running.token) as client:
        await client.append_user(voice(12_000))
        await client.append_character("a", voice(12_000))
        await client.end_segment("a")
        await client.wait(lambda: len(client.chunks) >= 8, timeout_s=60)
        assert client.chunks[-1].frames.shape == (4, SIZE, SIZE, 3)
        assert client.ready.character_name == "Ana"
        assert "speaking" in {chunk.message.state for chunk in client.chunks}
