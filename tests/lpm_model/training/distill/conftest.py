"""A small teacher, its dataset, and the networks of a distillation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lpm_model.autoencoder.load import copy_autoencoder, load_autoencoder
from lpm_model.checkpoint import save_model
from lpm_model.config import to_mapping
from lpm_model.online import OnlineModel
from lpm_model.training.distill.config import (
    CollapseMonitorSettings,
    Distillation,
    LongStage,
    OdeStage,
    OffPolicyStage,
    OnPolicyStage,
)
from lpm_model.training.distill.roles import ModelRoles
from lpm_model.training.engine.data import Batch, ClipBatches
from lpm_model.training.engine.shard_reader import read_clips
from tests.lpm_model import tiny

ALL_STAGES = Distillation(
    online=tiny.online_config(refiner_sigma=0.3),
    ode=OdeStage(steps=3),
    off_policy=OffPolicyStage(steps=1, critic_steps=1),
    on_policy=OnPolicyStage(steps=1, critic_steps=1),
    refiner=OnPolicyStage(steps=1, critic_steps=1),
    long=LongStage(steps=2, critic_steps=1, latents=6, switch_prob=0.9),
    collapse_monitor=CollapseMonitorSettings(
        every_steps=1, held_out_fraction=0.2, clips=2, motion=(0, 1e9), variance=(0, 1e9), colour=1e9,
    ),
    trajectories=4, teacher_steps=6, batch=2, clip_latents=4, checkpoint_steps=2,
)  # fmt: skip
"""Every stage with a collapse monitor whose bounds are never exceeded."""
UNMONITORED = replace(ALL_STAGES, collapse_monitor=CollapseMonitorSettings(every_steps=0))
"""Every stage without a collapse monitor: the last weights are retained."""


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "dataset", encoder)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_model(folder, {"model": tiny.transformer()}, {"model": to_mapping(tiny.MODEL), "size_px": tiny.SIZE_PX}, {})
    copy_autoencoder(encoder, folder)
    return folder


@pytest.fixture
def make_roles(encoder: Path) -> Callable[..., ModelRoles]:
    """Build the model roles of a distillation, all with the weights of the same teacher."""

    def make(settings: Distillation = ALL_STAGES) -> ModelRoles:
        torch.manual_seed(0)
        online = OnlineModel(tiny.MODEL, settings.online, load_autoencoder(encoder), tiny.SIZE_PX)
        for network in online.networks.values():
            network.load_state_dict(tiny.transformer().state_dict())
        return ModelRoles(online, settings.lora)

    return make


@pytest.fixture
def make_batch(dataset: Path) -> Callable[..., Batch]:
    """A batch of the dataset for some model roles."""

    def make(roles: ModelRoles, latents: int = 4, step: int = 0, **changes: Any) -> Batch:
        given: dict[str, Any] = {"batch": 2, "seed": 0, **changes}
        return ClipBatches(read_clips(dataset), roles.online, latents=latents, steps=range(9), **given).make(step)

    return make
