"""Teacher trajectories on disk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lpm_model import flow
from lpm_model.sampler import SHIFT
from lpm_model.training.distill import stage_runner
from lpm_model.training.distill.config import OdeStage, OffPolicyStage
from lpm_model.training.distill.roles import ModelRoles
from lpm_model.training.distill.train import distill_online
from lpm_model.training.distill.trajectories import TrajectoryShards, sample_teacher
from lpm_model.training.engine.data import Batch
from tests.killed import Killed
from tests.lpm_model.training.distill.conftest import UNMONITORED

MakeRoles, MakeBatch = Callable[..., ModelRoles], Callable[..., Batch]


def written(roles: ModelRoles, folder: Path, batches: list[Batch], settings: object = UNMONITORED) -> TrajectoryShards:
    shards = TrajectoryShards(folder, settings)  # type: ignore[arg-type]
    for number, batch in enumerate(batches):
        with roles.activate("teacher") as teacher:
            shards.write(number, sample_teacher(teacher, batch, shards.settings))
    return shards


def test_shard_rows_hold_teacher_states(make_roles: MakeRoles, make_batch: MakeBatch, tmp_path: Path) -> None:
    roles = make_roles()
    batches = [make_batch(roles, step=step) for step in range(2)]
    shards = written(roles, tmp_path, batches)
    made = shards.rows([3, 0], torch.Generator())
    assert made.clean.shape == (2, 16, 4, 4, 4)
    assert made.states.shape == (2, 2, 16, 4, 4, 4)
    assert made.sigmas == (1.0, 0.6)
    for row, (batch, place) in enumerate(((batches[1], 1), (batches[0], 0))):
        image = batch.latents[place, :, 0].bfloat16().float()
        assert torch.equal(made.clean[row, :, 0], image)
        assert torch.equal(made.states[row, 0, :, 0], image)
    assert abs(float(made.states[:, 0, :, 1:].std()) - 1) < 0.1  # noise
    assert not torch.allclose(made.states[:, 0], made.states[:, 1])


def test_consistency_stores_every_state(make_roles: MakeRoles, make_batch: MakeBatch, tmp_path: Path) -> None:
    settings = replace(UNMONITORED, ode=OdeStage(objective="consistency"))
    roles = make_roles(settings)
    made = written(roles, tmp_path, [make_batch(roles)], settings).rows([0, 1], torch.Generator())
    assert made.sigmas == tuple(flow.schedule(settings.teacher_steps, SHIFT)[:-1].tolist())
    # The states are on one path: an Euler step from the last one ends at the teacher's clip.
    last, before = made.states[:, -1, :, 1:], made.states[:, -2, :, 1:]
    assert (made.clean[:, :, 1:] - last).abs().mean() < (made.clean[:, :, 1:] - before).abs().mean()


def test_rows_with_and_without_captions_are_batched(
    make_roles: MakeRoles, make_batch: MakeBatch, tmp_path: Path
) -> None:
    roles = make_roles()
    batch = make_batch(roles)
    silent = replace(batch, conditions=batch.conditions.without("text"))
    for name, order in (("a", [batch, silent]), ("b", [silent, batch])):
        text = written(roles, tmp_path / name, order).rows([0, 2], torch.Generator()).conditions.text
        assert text is not None
        present = [bool(row.any()) for row in text]
        assert present == [entry is batch for entry in order]
    assert written(roles, tmp_path / "c", [silent]).rows([0, 1], torch.Generator()).conditions.text is None


def test_trajectory_batches_are_deterministic_and_divided_among_ranks(
    make_roles: MakeRoles, make_batch: MakeBatch, tmp_path: Path
) -> None:
    roles = make_roles()
    shards = written(roles, tmp_path, [make_batch(roles, step=step) for step in range(2)])
    first, again = (list(shards.batches(range(3))) for _ in range(2))
    assert all(torch.equal(a.clean, b.clean) for a, b in zip(first, again, strict=True))
    both = [list(shards.batches(range(3), rank, 2)) for rank in range(2)]
    for whole, *parts in zip(first, *both, strict=True):
        assert torch.equal(whole.clean, torch.cat([part.clean for part in parts]))
        assert parts[0].generator.initial_seed() != parts[1].generator.initial_seed()


def test_only_requested_rows_are_read(make_roles: MakeRoles, make_batch: MakeBatch, tmp_path: Path) -> None:
    roles = make_roles()
    shards = written(roles, tmp_path, [make_batch(roles, step=step) for step in range(2)])
    shards.path(1).unlink()
    assert shards.rows([0, 1], torch.Generator()).clean.shape[0] == 2  # the other shard is not opened
    assert shards.missing(range(2)) == [1]


def test_interrupted_sampling_reuses_shards(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = {"on_policy": replace(UNMONITORED.on_policy, steps=0), "refiner": replace(UNMONITORED.refiner, steps=0)}
    settings = replace(
        UNMONITORED, **none, off_policy=OffPolicyStage(), long=replace(UNMONITORED.long, steps=0), ode=OdeStage(steps=1)
    )
    made: list[int] = []

    def counted(*arguments: object) -> dict[str, torch.Tensor]:
        made.append(len(made))
        if made == [0, 1]:
            raise Killed
        return sample_teacher(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stage_runner, "sample_teacher", counted)
    with pytest.raises(Killed):
        distill_online(base, dataset, tmp_path, settings)
    assert len(list((tmp_path / "trajectories").glob("*.safetensors"))) == 1
    distill_online(base, dataset, tmp_path, settings)
    assert len(made) == 3  # one of two shards existed
