"""A model with pretrained encoders and Wan's autoencoder: trained, saved, loaded and run live from its folder alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from components.deploy.release import check_model_folder
from lpm_model.config import AudioConfig
from lpm_model.online import load_online
from lpm_model.sampler import load_base, sample_base
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.base.train import train_base
from lpm_model.training.distill.config import Distillation, OdeStage, OffPolicyStage, OnPolicyStage
from lpm_model.training.distill.train import distill_online
from tests.lpm_model import tiny
from tests.lpm_model.encoders.encoder_folders import HIDDEN, TEXT_WIDTH, write_umt5, write_wav2vec2
from tests.lpm_model.wan_folder import write_wan_autoencoder

MODEL = replace(
    tiny.MODEL, text_encoder="umt5", text_width=TEXT_WIDTH, audio_width=2 * HIDDEN,
    audio=AudioConfig(encoder="wav2vec2", past_ms=200, lookahead_ms=100),
)  # fmt: skip


def test_model_folder_is_self_contained(tmp_path: Path) -> None:
    encoders = tmp_path / "encoders"
    write_umt5(encoders / "text")
    write_wav2vec2(encoders / "audio")
    (encoders / "text" / "pytorch_model.bin").write_bytes(b"a pickle that nobody asked for")
    vae = write_wan_autoencoder(tmp_path / "vae")
    dataset = tiny.write_dataset(tmp_path / "dataset", vae)
    settings = BaseTraining(
        model=MODEL, steps=1, batch=1, clip_latents=3, crop_steps=0, autoencoder=str(vae), encoders=str(encoders)
    )
    train_base(dataset, tmp_path / "base", settings)
    distill_online(
        tmp_path / "base", dataset, tmp_path / "online",
        Distillation(
            trajectories=1, teacher_steps=2, batch=1, clip_latents=3, ode=OdeStage(steps=1),
            off_policy=OffPolicyStage(steps=1, critic_steps=1), on_policy=OnPolicyStage(steps=0),
        ),
    )  # fmt: skip
    for folder in (encoders, vae):
        folder.rename(folder.with_name(f"{folder.name}-elsewhere"))
    picture = np.full((tiny.SIZE_PX, tiny.SIZE_PX, 3), 90, np.uint8)
    base = load_base(tmp_path / "base", torch.float32)
    sound = tiny.voice(8000)
    frames = sample_base(base, base.character(picture), sound, sound, ["a person nods"], steps=2)
    assert frames.shape == (1, 8, tiny.SIZE_PX, tiny.SIZE_PX, 3)
    check_model_folder(tmp_path / "online")
    online = load_online(tmp_path / "online", torch.float32)
    state = online.init_state(online.character(picture))
    live = tiny.voice(online.chunk_samples + online.lookahead_samples)
    frames, _ = online.step(state, live, live, ["a person smiles"])
    assert frames.shape[1] == online.chunk_frames


def test_encoder_mismatch_is_named(tmp_path: Path) -> None:
    encoder = tiny.autoencoder()
    from lpm_model.sampler import BaseModel

    with pytest.raises(ValueError, match=r"wav2vec2 has weights: give train\.encoders=DIR with audio/ in it"):
        BaseModel(MODEL, encoder, tiny.SIZE_PX)
    write_umt5(tmp_path / "text")
    write_wav2vec2(tmp_path / "audio")
    with pytest.raises(ValueError, match="text_width is 17, but 'umt5' gives 16"):
        BaseModel(replace(MODEL, text_width=17), encoder, tiny.SIZE_PX, tmp_path)
    with pytest.raises(ValueError, match="latent_channels is 8, but the autoencoder gives 16"):
        BaseModel(replace(tiny.MODEL, latent_channels=8), encoder, tiny.SIZE_PX)
    with pytest.raises(ValueError, match="unknown text encoder 'clip'"):
        BaseModel(replace(tiny.MODEL, text_encoder="clip"), encoder, tiny.SIZE_PX)
