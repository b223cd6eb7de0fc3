"""Small models, an autoencoder folder and a dataset folder that tests of lpm_model, train and distill share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor, nn

from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.autoencoder.tiny import AutoencoderConfig, TinyVideoAutoencoder, build_autoencoder
from lpm_model.character import Character
from lpm_model.checkpoint import save_model
from lpm_model.config import AudioConfig, ModelConfig, OnlineConfig, to_mapping
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.online import OnlineModel

SIZE_PX = 32
AUTOENCODER = AutoencoderConfig(encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), depths=(1, 1, 1))
MODEL = ModelConfig(
    residual_gain=2.0,
    predicts="clean",
    width=32, layers=2, heads=2, ffn_width=48, time_width=32, text_width=8, text_tokens=4,
    audio=AudioConfig(speak_window_latents=2, listen_window_latents=4),
)  # fmt: skip


def online_config(**changes: Any) -> OnlineConfig:
    """Return a config whose cache wraps after a few chunks."""
    return OnlineConfig(**{"sink_latents": 2, "window_latents": 3, **changes})


def randomised(model: nn.Module, seed: int = 0, scale: float = 0.15) -> Any:
    """Return the model with all parameters perturbed, so that none is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def transformer(config: ModelConfig = MODEL, seed: int = 0) -> DiffusionTransformer:
    torch.manual_seed(seed)
    return randomised(DiffusionTransformer(config), seed)


def autoencoder(seed: int = 0) -> TinyVideoAutoencoder:
    torch.manual_seed(seed)
    return randomised(build_autoencoder(AUTOENCODER), seed, 0.05)


def online_model(online: OnlineConfig | None = None, config: ModelConfig = MODEL) -> OnlineModel:
    torch.manual_seed(1)
    model = OnlineModel(config, online or online_config(), autoencoder(), SIZE_PX)
    randomised(model.backbone, 2)
    return model.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def voice(samples: int, seed: int = 0, batch: int = 1) -> Tensor:
    """Noise bursts in [-1, 1]."""
    return (0.3 * normal(batch, samples, seed=seed)).clamp(-1, 1)


def person(seed: int = 0) -> Character:
    """A character with two references, made of noise."""
    return Character(normal(1, 16, 1, 4, 4, seed=seed), normal(1, 2, 16, 4, 4, seed=seed + 50), torch.tensor([-1, -2]))


def conditions(frames: int, batch: int = 1, seed: int = 0, config: ModelConfig = MODEL) -> Conditions:
    """All branches present."""
    shape = (batch, config.context_latents + frames, config.audio_tokens, config.audio_width)
    return Conditions(
        text=normal(batch, config.text_tokens, config.text_width, seed=seed + 1),
        speak=normal(*shape, seed=seed + 2),
        listen=normal(*shape, seed=seed + 3),
        references=normal(batch, 2, 16, 4, 4, seed=seed + 4),
        reference_positions=torch.tensor([-1, -2]),
    )


def write_autoencoder(folder: Path) -> Path:
    """An autoencoder folder with random weights."""
    save_model(folder, {"model": autoencoder()}, to_mapping(AUTOENCODER), {}, torch.float32)
    return folder


def clip_members(seed: int, latents: int = 9) -> dict[str, Any]:
    """Return the members of one clip in a shard."""
    rng = np.random.default_rng(seed)
    samples = 4000 * (latents - 1)
    return {
        "latents.npy": rng.normal(size=(16, latents, 4, 4)).astype(np.float16),
        "references.npy": rng.normal(size=(3, 16, 4, 4)).astype(np.float16),
        "speak.npy": rng.integers(-999, 999, samples).astype(np.int16),
        "listen.npy": rng.integers(-999, 999, samples).astype(np.int16),
        "json": {
            "caption": "a woman speaks",
            "reference_kinds": ["global", "view_0", "expression_1"],
            "states": [[1, 1 + 2 * (latents - 1)], [2, 2 * (latents - 1)]],
        },
    }


def write_dataset(folder: Path, encoder: Path, clips: int = 4, shards: int = 2) -> Path:
    """Write the part of a dataset folder that training reads."""
    (folder / "shards").mkdir(parents=True)
    names = [f"train-{number:06d}.tar" for number in range(shards)]
    for number, name in enumerate(names):
        with webdataset.TarWriter(str(folder / "shards" / name)) as tar:
            for index in range(number, clips, shards):
                tar.write({"__key__": f"clip{index}", **clip_members(index)})
    about = {
        "digest": "d" * 64, "clips": clips, "shards": names, "size_px": SIZE_PX,
        "autoencoder_digest": load_autoencoder(encoder).digest,
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder
