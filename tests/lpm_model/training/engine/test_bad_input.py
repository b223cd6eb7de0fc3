"""Errors about bad inputs are one line that names the file and the remedy."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lpm_model.config import ModelConfig
from lpm_model.sampler import load_base
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.base.train import train_base
from pipelines.cli import main
from tests.lpm_model import tiny

SETTINGS = BaseTraining(model=tiny.MODEL, steps=1, batch=1, clip_latents=4, crop_steps=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an autoencoder, a dataset and a model that match."""
    place = tmp_path_factory.mktemp("inputs")
    encoder = tiny.write_autoencoder(place / "autoencoder")
    tiny.write_dataset(place / "dataset", encoder)
    train_base(place / "dataset", place / "base", settings(place))
    return place


def settings(place: Path, **changes: object) -> BaseTraining:
    return replace(SETTINGS, autoencoder=str(place / "autoencoder"), **changes)


def truncated_copy(folder: Path, copy: Path) -> Path:
    """Copy a model folder and truncate its weights."""
    weights = shutil.copytree(folder, copy) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return copy


def test_heads_must_divide_width(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "train.model.heads=5"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "heads is 5: width 256 divided by it must be an even whole number; choose 1, 2, 4, 8" in line
    with pytest.raises(ValueError, match="heads is 0"):
        ModelConfig(heads=0)


def test_missing_shard_error_names_shard_and_remedy(place: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(place / "dataset", tmp_path / "dataset")
    (copy / "shards" / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000001\.tar is missing: copy the whole dataset or run `lpm curate`"):
        train_base(copy, tmp_path / "base", settings(place))


def test_truncated_weights_error_names_file_and_remedy(place: Path, tmp_path: Path) -> None:
    base = truncated_copy(place / "base", tmp_path / "base")
    with pytest.raises(ValueError, match=r"base/model\.safetensors is damaged .*: copy it or run the step"):
        load_base(base)
    with pytest.raises(ValueError, match=r"base/model\.safetensors cannot be read .*: copy the whole folder again"):
        train_base(place / "dataset", tmp_path / "next", settings(place, init_from=str(base)))
    encoder = truncated_copy(place / "autoencoder", tmp_path / "autoencoder")
    with pytest.raises(ValueError, match=r"autoencoder/model\.safetensors is damaged"):
        train_base(place / "dataset", tmp_path / "next", replace(SETTINGS, autoencoder=str(encoder)))


def test_weight_shape_mismatch_error_names_both_shapes(place: Path, tmp_path: Path) -> None:
    wider = replace(tiny.MODEL, ffn_width=64)
    remedy = r"has shape \(48,\), train\.model needs \(64,\): take the shape from its config\.json"
    with pytest.raises(ValueError, match=remedy):
        train_base(place / "dataset", tmp_path / "next", settings(place, model=wider, init_from=str(place / "base")))
    train_base(place / "dataset", tmp_path / "wide", settings(place, model=wider))
    mixed = shutil.copytree(place / "base", tmp_path / "mixed")
    shutil.copyfile(tmp_path / "wide" / "model.safetensors", mixed / "model.safetensors")
    remedy = r"mixed/model\.safetensors: .* has shape .*the config needs .*; take the weights and config\.json from"
    with pytest.raises(ValueError, match=remedy):
        load_base(mixed, torch.float32)
