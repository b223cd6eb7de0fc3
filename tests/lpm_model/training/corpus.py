"""A dataset folder of noise and an autoencoder of a few weights: enough for steps to run in a second."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch

from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.autoencoder.tiny import AutoencoderConfig, build_autoencoder
from lpm_model.checkpoint import save_model
from lpm_model.config import AudioConfig, ModelConfig, to_mapping
from lpm_model.files import write_json

MODEL = ModelConfig(
    residual_gain=2.0,
    predicts="clean",
    width=32,
    layers=2,
    heads=2,
    ffn_width=32,
    time_width=16,
    text_width=8,
    text_tokens=4,
    audio=AudioConfig(listen_window_latents=3),
)
SIZE_PX = 32


def make_autoencoder(folder: Path) -> Path:
    torch.manual_seed(0)
    config = AutoencoderConfig(encoder_widths=(4, 4, 8), decoder_widths=(4, 4, 8), depths=(1, 1, 1))
    save_model(folder, {"model": build_autoencoder(config)}, to_mapping(config), {})
    return folder


def make_dataset(folder: Path, autoencoder: Path, clips: int = 3, latents: int = 5) -> Path:
    """Clips of noise in curation's layout."""
    random = np.random.default_rng(0)
    grid = SIZE_PX // 8
    (folder / "shards").mkdir(parents=True)
    with tarfile.open(folder / "shards" / "train-000000.tar", "w") as tar:
        for i in range(clips):
            sound = random.integers(-3000, 3000, (2, 4000 * (latents - 1))).astype(np.int16)
            _add(tar, f"clip{i}.latents.npy", random.standard_normal((16, latents, grid, grid)).astype(np.float16))
            _add(tar, f"clip{i}.references.npy", random.standard_normal((1, 16, grid, grid)).astype(np.float16))
            _add(tar, f"clip{i}.speak.npy", sound[0])
            _add(tar, f"clip{i}.listen.npy", sound[1])
            meta = {"caption": "a person speaks", "reference_kinds": ["global"], "frames": 4 * latents - 3}
            _add(tar, f"clip{i}.json", json.dumps({**meta, "person_id": "p", "size_px": SIZE_PX}).encode())
    about = {"digest": "d" * 64, "clips": clips, "seconds": 2.0, "size_px": SIZE_PX}
    write_json(folder / "dataset.json", {**about, "autoencoder_digest": load_autoencoder(autoencoder).digest})
    return folder


def _add(tar: tarfile.TarFile, name: str, value: np.ndarray | bytes) -> None:
    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value)
        value = buffer.getvalue()
    info = tarfile.TarInfo(name)
    info.size = len(value)
    tar.addfile(info, io.BytesIO(value))
