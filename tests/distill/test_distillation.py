"""Distillation: roles, roll-outs, trajectories, resuming."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lpm_model.autoencoder import copy_autoencoder, load_autoencoder
from lpm_model.checkpoint import save_model
from lpm_model.config import to_mapping
from lpm_model.dit import Conditions
from lpm_model.online import OnlineModel, load_online
from lpm_model.rollout import chunk_conditions
from lpm_model.training.clips import read_clips
from lpm_model.training.config import Distillation
from lpm_model.training.data import Batch, ClipBatches
from lpm_model.training.distill import (
    DmdModule,
    OdeModule,
    distill_online,
    ode_batches,
    teacher_trajectories,
)
from tests.killed import Killed, kill_after
from tests.lpm_model import tiny

SETTINGS = Distillation(
    online=tiny.online_config(), trajectories=4, teacher_steps=6, batch=2, clip_latents=4, ode_steps=4, dmd_steps=2,
    critic_steps=1, checkpoint_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "dataset", encoder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_model(folder, {"model": tiny.transformer()}, {"model": to_mapping(tiny.MODEL), "size_px": tiny.SIZE_PX}, {})
    copy_autoencoder(encoder, folder)
    return folder


@pytest.fixture
def module(encoder: Path) -> DmdModule:
    online = OnlineModel(tiny.MODEL, SETTINGS.online, load_autoencoder(encoder), tiny.SIZE_PX)
    online.backbone.load_state_dict(tiny.transformer().state_dict())
    return DmdModule(online, tiny.transformer(), SETTINGS, 0)


@pytest.fixture
def batch(module: DmdModule, dataset: Path) -> Batch:
    online: OnlineModel = module.frozen[0]  # type: ignore[assignment]
    return ClipBatches(read_clips(dataset), online, latents=4, batch=2, steps=range(1), seed=0).make(0)


def gradients(model: torch.nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)


def test_the_students_step_moves_the_student_alone(module: DmdModule, batch: Batch) -> None:
    with torch.no_grad():
        module.critic.head.weight.mul_(1.5)
    module.student_loss(batch).backward()
    assert gradients(module.backbone) > 0
    assert gradients(module.critic) == gradients(module.frozen[1]) == gradients(module.average) == 0


def test_the_critics_step_moves_the_critic_alone(module: DmdModule, batch: Batch) -> None:
    module.critic_loss(batch).backward()
    assert gradients(module.critic) > 0
    assert gradients(module.backbone) == gradients(module.frozen[1]) == gradients(module.average) == 0


def test_a_critic_that_agrees_with_the_teacher_moves_nothing(module: DmdModule, batch: Batch) -> None:
    module.settings = replace(SETTINGS, guidance=1.0)
    module.student_loss(batch).backward()
    assert gradients(module.backbone) < 1e-6


def test_a_roll_out_starts_with_the_image_and_repeats(module: DmdModule, batch: Batch) -> None:
    state = batch.generator.get_state()
    clip = module.roll_out(batch, train=False)
    assert torch.equal(clip[:, :, 0], batch.latents[:, :, 0])
    batch.generator.set_state(state)
    assert torch.equal(clip, module.roll_out(batch, train=False))
    assert clip.shape == batch.latents.shape
    assert not torch.equal(clip, module.roll_out(batch, train=False))


def test_renoising_keeps_the_image(module: DmdModule, batch: Batch) -> None:
    noisy, sigma, noise = module.renoise(batch.latents, torch.Generator().manual_seed(0))
    assert torch.equal(noisy[:, :, 0], batch.latents[:, :, 0])
    assert torch.equal(sigma[:, 0], torch.zeros(2))
    assert torch.equal(sigma[:, 1:], sigma[:, 1:2].expand(-1, 3))
    level = sigma[:, None, :, None, None]
    assert torch.allclose(noisy, (1 - level) * batch.latents + level * noise)


def test_a_chunk_hears_its_context_and_itself() -> None:
    marks = torch.arange(10.0)[None, :, None, None]
    cut = chunk_conditions(Conditions(speak=marks), context=3, first=2, frames=1)
    assert cut.speak is not None
    assert cut.speak.flatten().tolist() == [2, 3, 4, 5]
    assert cut.listen is None


def test_trajectories_hold_the_teachers_states(module: DmdModule, batch: Batch) -> None:
    teacher = module.frozen[1]
    made = teacher_trajectories(teacher, iter([batch]), SETTINGS)  # type: ignore[arg-type]
    assert made.clean.shape == (2, 16, 4, 4, 4)
    assert made.states.shape == (2, 2, 16, 4, 4, 4)
    assert torch.equal(made.clean[:, :, 0], batch.latents[:, :, 0])
    assert not torch.allclose(made.states[0], made.states[1])
    first, again = (list(ode_batches(made, range(3), replace(SETTINGS, batch=1))) for _ in range(2))
    assert all(torch.equal(a.clean, b.clean) for a, b in zip(first, again, strict=True))


def test_batches_with_and_without_captions_join(module: DmdModule, batch: Batch) -> None:
    silent = replace(batch, conditions=batch.conditions.without("text"))
    for order in ([batch, silent], [silent, batch]):
        made = teacher_trajectories(module.frozen[1], iter(order), replace(SETTINGS, teacher_steps=2))  # type: ignore[arg-type]
        assert made.conditions.text is not None
        assert made.conditions.text.shape[0] == made.clean.shape[0] == 4


def test_too_few_trajectories_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fill a batch of 8"):
        Distillation(trajectories=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path, dataset: Path) -> Path:
    folder = tmp_path_factory.mktemp("online")
    distill_online(base, dataset, folder, SETTINGS)
    return folder


@pytest.mark.parametrize(("stage", "steps"), [(OdeModule, 3), (DmdModule, 1), (DmdModule, 3)])
def test_a_killed_distillation_ends_in_the_same_bytes(
    stage: type, steps: int, whole: Path, base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, stage, steps)
        with pytest.raises(Killed):
            distill_online(base, dataset, tmp_path, SETTINGS)
    distill_online(base, dataset, tmp_path, SETTINGS)
    for name in ("model.safetensors", "config.json", "provenance.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_online_folder_is_whole(whole: Path, base: Path) -> None:
    model = load_online(whole)
    assert model.online == SETTINGS.online
    provenance = json.loads((whole / "provenance.json").read_text())
    assert provenance["metrics"]["ode_loss"] > 0
    assert not list(whole.glob("state-*"))
    assert (whole / "autoencoder" / "model.safetensors").read_bytes() == (
        base / "autoencoder" / "model.safetensors"
    ).read_bytes()
