"""Training of Base LPM: noise levels, data, resuming, gradients, rejected inputs."""

import json
import math
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from lpm_model import flow
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.checkpoint import read_weights
from lpm_model.config import STATES
from lpm_model.dit import Conditions
from lpm_model.sampler import BaseModel, load_base
from lpm_model.training.base import train as base_training
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.base.train import BaseModule, draw_sigmas, drop_conditions, train_base
from lpm_model.training.engine.checkpoints import CheckpointFile
from lpm_model.training.engine.data import ClipBatches, RandomCrops, crop_to_motion, read_dataset, step_generator
from lpm_model.training.engine.loop import LossHistory
from lpm_model.training.engine.optimizers import muon_and_adamw
from lpm_model.training.engine.shard_reader import Clip, Clips, read_clips
from tests.killed import Killed, kill_after
from tests.lpm_model import tiny

SETTINGS = BaseTraining(
    model=tiny.MODEL, steps=6, batch=2, clip_latents=4, checkpoint_steps=3, warmup_steps=2,
    crop_steps=5, full_frame_every=3, crop_batch=3, crop_size=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "dataset", encoder)


@pytest.fixture(scope="module")
def base(encoder: Path) -> BaseModel:
    torch.manual_seed(0)
    return BaseModel(tiny.MODEL, load_autoencoder(encoder), tiny.SIZE_PX)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Path, encoder: Path) -> Path:
    """Six steps without interruption."""
    folder = tmp_path_factory.mktemp("base")
    train_base(dataset, folder, with_encoder(encoder))
    return folder


def with_encoder(encoder: Path) -> BaseTraining:
    return replace(SETTINGS, autoencoder=str(encoder))


def batches(clips: Clips, base: BaseModel, steps: range = range(4), seed: int = 0) -> ClipBatches:
    return ClipBatches(clips, base, latents=4, batch=3, steps=steps, seed=seed)


def test_sigmas_are_zero_for_latent_zero_and_shifted_for_others() -> None:
    settings = replace(SETTINGS, independent_noise_prob=0.0)
    sigma = draw_sigmas(4000, 5, settings, torch.Generator().manual_seed(0))
    assert torch.equal(sigma[:, 0], torch.zeros(4000))
    assert torch.equal(sigma[:, 1:], sigma[:, 1:2].expand(-1, 4))
    expected = flow.shift_sigma(torch.linspace(0, 1, 4001), settings.sigma_shift)
    assert torch.allclose(sigma[:, 1].sort().values[::100], expected[:-1:100], atol=0.05)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_independent_noise_frequency_matches_probability(share: float) -> None:
    settings = replace(SETTINGS, independent_noise_prob=share)
    sigma = draw_sigmas(4000, 5, settings, torch.Generator().manual_seed(1))
    assert abs(float((sigma[:, 1] != sigma[:, 2]).float().mean()) - share) < 0.03


def test_condition_dropout_frequency_matches_probability() -> None:
    generator, given, chance, rounds = torch.Generator().manual_seed(0), tiny.conditions(1), 0.4, 1500
    names = ("text", "speak", "listen", "references")
    absent = dict.fromkeys(names, 0)
    for _ in range(rounds):
        left = drop_conditions(given, chance, generator)
        for name in names:
            absent[name] += getattr(left, name) is None
    for name in names[:3]:
        assert abs(absent[name] / rounds - (chance + (1 - chance) * chance / 2)) < 0.04
    assert abs(absent["references"] / rounds - (1 - chance) * chance / 2) < 0.03
    assert drop_conditions(given, 0.0, generator) == given


def test_batch_depends_only_on_seed_and_step(dataset: Path, base: BaseModel) -> None:
    clips = read_clips(dataset)
    one, other = batches(clips, base), batches(clips, base)
    late = other.make(3)
    for _ in range(2):
        again = one.make(3)
        assert again.keys == late.keys
        assert torch.equal(again.latents, late.latents)
        assert torch.equal(again.conditions.speak, late.conditions.speak)
        assert torch.equal(torch.rand(3, generator=again.generator), torch.rand(3, generator=other.make(3).generator))
    resumed = list(batches(clips, base, range(2, 4)))
    assert [b.keys for b in resumed] == [b.keys for b in list(one)[2:]]
    assert not torch.equal(batches(clips, base, seed=1).make(3).latents, late.latents)


def test_window_audio_is_aligned_with_its_latents(base: BaseModel) -> None:
    """Latents and loudness of the audio both count upwards, so both must be cut at the same time."""
    count = 8
    latents = np.broadcast_to(np.arange(count, dtype=np.float16)[None, :, None, None], (16, count, 4, 4))
    steps = np.repeat(np.arange(1, count), 4000)
    tone = np.sin(np.arange(len(steps)) * 0.3) * 40 * 2.0**steps
    clip = Clip("c", latents.copy(), np.zeros((1, 16, 4, 4), np.float16), ("global",), tone.astype(np.int16),
                np.zeros(len(steps), np.int16), "x", np.ones(4 * (count - 1), np.uint8))  # fmt: skip
    source = batches([clip], base)
    for step in range(6):
        batch = source.make(step)
        for row in range(3):
            first = int(batch.latents[row, 0, 0, 0, 0])
            gain = base.codec.gain
            assert batch.latents[row, 0, :, 0, 0].tolist() == [first, gain, 2 * gain, 3 * gain]
            whole = base.clip_features(torch.from_numpy(clip.speak).float()[None] / 32768)[0].bfloat16().float()
            span = slice(first, first + 4 + base.config.context_latents)
            assert torch.equal(batch.conditions.speak[row], whole[span])


def test_short_clips_are_rejected(dataset: Path, base: BaseModel) -> None:
    with pytest.raises(ValueError, match="the longest has 9"):
        ClipBatches(read_clips(dataset), base, latents=10, batch=1, steps=range(1), seed=0)


def test_audio_length_mismatch_error_names_clip(dataset: Path, base: BaseModel) -> None:
    clip = replace(read_clips(dataset)[0], speak=np.zeros(999, np.int16), listen=np.zeros(999, np.int16))
    with pytest.raises(ValueError, match="clip clip0 has 999 samples for 32000"):
        batches([clip], base).make(0)


def test_step_generators_differ_by_purpose() -> None:
    draws = {float(torch.rand(1, generator=step_generator(0, s, p))) for s in (0, 1) for p in ("data", "noise")}
    assert len(draws) == 4


def test_killed_base_training_resumes_bit_equal(
    trained: Path, dataset: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    plain = LossHistory.on_train_batch_end

    def spy(self: LossHistory, *arguments: Any) -> None:
        plain(self, *arguments)
        losses.append(self.losses[-1])

    monkeypatch.setattr(LossHistory, "on_train_batch_end", spy)
    train_base(dataset, tmp_path / "whole", with_encoder(encoder))
    whole = losses.copy()
    losses.clear()
    with monkeypatch.context() as patch:
        kill_after(patch, BaseModule, 4)
        with pytest.raises(Killed):
            train_base(dataset, tmp_path, with_encoder(encoder))
    assert CheckpointFile(tmp_path / "checkpoint").step() == 3
    train_base(dataset, tmp_path, with_encoder(encoder))
    assert losses == pytest.approx([*whole[:4], *whole[3:]], abs=1e-6)
    for name in ("model.safetensors", "config.json", "provenance.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name
    assert not (tmp_path / "checkpoint").exists()


def test_loader_workers_do_not_change_weights(trained: Path, dataset: Path, encoder: Path, tmp_path: Path) -> None:
    train_base(dataset, tmp_path, replace(with_encoder(encoder), loader_workers=2, loader_mb=0))
    assert (tmp_path / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_model_folder_is_complete(trained: Path) -> None:
    assert load_base(trained).config == tiny.MODEL
    provenance = json.loads((trained / "provenance.json").read_text())
    assert provenance["dataset_digest"] == "d" * 64
    assert provenance["metrics"]["steps"] == 6
    assert math.isfinite(provenance["metrics"]["loss"])


def test_training_overfits_one_clip(base: BaseModel) -> None:
    """To less than 2 % of the initial loss, with both optimizers of the training."""
    members = tiny.clip_members(0, latents=4)
    clip = Clip("c", members["latents.npy"], members["references.npy"], ("global",), members["speak.npy"],
                members["listen.npy"], "x", np.ones(12, np.uint8))  # fmt: skip
    torch.manual_seed(0)
    model = BaseModel(tiny.MODEL, base.autoencoder, tiny.SIZE_PX)
    module = BaseModule(model, replace(SETTINGS, condition_dropout=0.0), 0)
    optimizers = muon_and_adamw(model.dit, muon_lr=0.03, learning_rate=1e-2, weight_decay=0.0)
    losses = []
    for batch in ClipBatches([clip], model, latents=4, batch=4, steps=range(80), seed=0):
        loss = module.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.dit.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.02 * losses[0]


def test_only_the_transformer_gets_gradients(dataset: Path, base: BaseModel) -> None:
    module = BaseModule(base, replace(SETTINGS, condition_dropout=0.0), 0)
    module.loss(batches(read_clips(dataset), base).make(0)).backward()
    # The head starts at zero, so in the first step only the head has a gradient.
    assert float(base.dit.head.weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in base.autoencoder.parameters())
    assert all(p.grad is None for p in module.ema.parameters())
    base.dit.zero_grad()


def test_non_finite_loss_names_clips_and_keeps_last_checkpoint(
    dataset: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = base_training.flow_matching_loss
    calls = [0]

    def broken(*arguments: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return plain(*arguments) * (float("nan") if calls[0] == 4 else 1.0)

    monkeypatch.setattr(base_training, "flow_matching_loss", broken)
    with pytest.raises(ValueError, match=r"not finite at batch 3 \(clip\d(, clip\d)*\)"):
        train_base(dataset, tmp_path, replace(with_encoder(encoder), checkpoint_steps=2))
    state = CheckpointFile(tmp_path / "checkpoint")
    assert state.step() == 2
    assert all(bool(t.isfinite().all()) for t in read_weights(state.path).values() if t.is_floating_point())


def test_dataset_of_another_autoencoder_is_rejected(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another autoencoder"):
        read_dataset(dataset, "0" * 64)
    with pytest.raises(ValueError, match=r"dataset\.json is missing"):
        read_dataset(tmp_path, "0" * 64)


def test_missing_shard_is_named(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    (copy / "shards" / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000001\.tar is missing"):
        read_clips(copy)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55])
def test_truncated_shard_is_named(dataset: Path, tmp_path: Path, share: float) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    shard = copy / "shards" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[: int(share * shard.stat().st_size)])
    with pytest.raises(ValueError, match=r"train-000001\.tar"):
        read_clips(copy)


def test_shard_truncated_between_clips_is_named(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    shard = copy / "shards" / "train-000001.tar"
    with tarfile.open(shard) as tar:
        second = next(member.offset for member in tar if member.name.startswith("clip3."))
    shard.write_bytes(shard.read_bytes()[:second])
    with pytest.raises(ValueError, match=r"train-000001\.tar is truncated"):
        read_clips(copy)


def test_corrupt_shard_and_incomplete_clip_are_named(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    shard = copy / "shards" / "train-000001.tar"
    shard.write_bytes(b"noise" * 1000 + bytes(1024))
    with pytest.raises(ValueError, match=r"train-000001\.tar cannot be read"):
        read_clips(copy)
    with webdataset.TarWriter(str(shard)) as tar:
        tar.write({"__key__": "odd", "json": {"caption": ""}})
    with pytest.raises(ValueError, match=r"train-000001\.tar: clip odd lacks latents"):
        read_clips(copy)


def test_clips_are_in_key_order(dataset: Path) -> None:
    clips = read_clips(dataset)
    assert [clip.key for clip in clips] == ["clip0", "clip1", "clip2", "clip3"]
    assert clips[0].kinds == ("global", "view_0", "expression_1")
    assert clips[0].states.tolist() == [STATES["speak"]] * 16 + [STATES["listen"]] * 16


def test_one_latent_window_is_rejected() -> None:
    with pytest.raises(ValueError, match="clip_latents is 1: give at least 2"):
        BaseTraining(clip_latents=1)


def test_random_crops_follow_motion_and_schedule(dataset: Path, base: BaseModel) -> None:
    latents = torch.zeros(200, 16, 3, 8, 8)
    latents[:, :, 1, 4:6, 2:4] = 1.0
    places = torch.arange(64.0).reshape(8, 8)
    references = places.expand(200, 1, 16, 8, 8)
    generator = torch.Generator().manual_seed(0)
    cut, given, places_cut = crop_to_motion(latents, Conditions(references=references), 4, generator)
    assert cut.shape == (200, 16, 3, 4, 4)
    assert (cut[:, 0, 1].sum((1, 2)) == 4).all(), "every square holds what moves"
    assert given.references is not None
    corners = {(int(at) // 8, int(at) % 8) for at in given.references[:, 0, 0, 0, 0]}
    assert corners == {(2, 0), (2, 2), (4, 0), (4, 2)}, "patches keep their phase, and all places are drawn"
    assert set(places_cut) == corners
    crops = RandomCrops(steps=5, full_frame_every=3, batch=5, size=2)
    mixed = ClipBatches(read_clips(dataset), base, latents=4, batch=3, steps=range(7), seed=0, crops=crops)
    shapes = [tuple(batch.latents.shape) for batch in mixed]
    small, whole = (5, 16, 4, 2, 2), (3, 16, 4, 4, 4)
    assert shapes == [small, small, whole, small, small, whole, whole]
