"""Tiny models, built once."""

from pathlib import Path

import pytest

from lpm_model.autoencoder.tiny import TinyVideoAutoencoder
from lpm_model.dit import DiffusionTransformer
from lpm_model.online import OnlineModel
from tests.lpm_model import tiny


@pytest.fixture(scope="session")
def dit() -> DiffusionTransformer:
    return tiny.transformer()


@pytest.fixture(scope="session")
def encoder() -> TinyVideoAutoencoder:
    return tiny.autoencoder()


@pytest.fixture(scope="session")
def online() -> OnlineModel:
    return tiny.online_model()


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "dataset", encoder_folder)
