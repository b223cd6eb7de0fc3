"""Distribution matching: gradients by role, rollout spans, memory independent of the rollout's length."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lpm_model.config import Lora
from lpm_model.latent_codec import LatentCodec
from lpm_model.training.distill.config import Distillation
from lpm_model.training.distill.long_rollout import StreamingSampler
from lpm_model.training.distill.roles import ModelRoles, Role
from lpm_model.training.distill.rollout_samplers import OffPolicySampler, OnPolicySampler, RolloutSampler, RolloutSpans
from lpm_model.training.distill.stages import DmdModule
from lpm_model.training.distill.trajectories import Trajectories, TrajectoryShards, sample_teacher
from lpm_model.training.engine.data import Batch
from tests.lpm_model import tiny
from tests.lpm_model.training.distill.conftest import UNMONITORED

MakeRoles, MakeBatch = Callable[..., ModelRoles], Callable[..., Batch]
KEYS = ("off_policy", "on_policy", "refiner", "long")


def sampler_of(key: str, roles: ModelRoles, settings: Distillation) -> RolloutSampler:
    if key == "off_policy":
        return OffPolicySampler(roles, settings)
    if key == "long":
        return StreamingSampler(roles, settings)
    return OnPolicySampler(roles, settings, "refiner" if key == "refiner" else "student")


def trajectories(roles: ModelRoles, batch: Batch, folder: Path, settings: Distillation) -> Trajectories:
    shards = TrajectoryShards(folder, settings)
    with roles.activate("teacher") as teacher:
        shards.write(0, sample_teacher(teacher, batch, settings))
    return shards.rows([0, 1], torch.Generator().manual_seed(0))


def shared() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def gradients(roles: ModelRoles) -> dict[Role, float]:
    return {
        role: sum(float(w.grad.abs().sum()) for w in roles.weights(role).values() if w.grad is not None)
        for role in roles.networks
    }


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("key", KEYS)
def test_gradients_reach_only_the_trained_role(
    key: str, rank: int, make_roles: MakeRoles, make_batch: MakeBatch, tmp_path: Path
) -> None:
    settings = replace(UNMONITORED, lora=Lora(rank=rank))
    roles = make_roles(settings)
    stage, sampler = getattr(settings, key), sampler_of(key, roles, settings)
    module = DmdModule(roles, settings, stage, sampler, name=key)
    with torch.no_grad():
        for role in roles.networks if rank else ():
            for name, weight in roles.weights(role).items():
                weight += 0.05 * tiny.normal(*weight.shape, seed=len(name))
        if not rank:
            roles.networks["critic"].head.weight.mul_(1.5)
    batch = make_batch(roles)
    given = trajectories(roles, batch, tmp_path, settings) if key == "off_policy" else batch
    module.student_loss(given, shared()).backward()
    moved = gradients(roles)
    assert moved.pop(sampler.role) > 0
    assert not any(moved.values())
    for role in roles.networks:
        for weight in roles.weights(role).values():
            weight.grad = None
    module.critic_loss(given, shared()).backward()
    moved = gradients(roles)
    assert moved.pop("critic") > 0
    assert not any(moved.values())


@pytest.mark.parametrize("rank", [0, 2])
def test_dmd_gradient_is_zero_if_critic_equals_teacher(rank: int, make_roles: MakeRoles, make_batch: MakeBatch) -> None:
    settings = replace(UNMONITORED, guidance=1.0, lora=Lora(rank=rank))
    roles = make_roles(settings)
    module = DmdModule(roles, settings, settings.on_policy, OnPolicySampler(roles, settings, "student"), name="")
    module.student_loss(make_batch(roles), shared()).backward()
    assert gradients(roles)["student"] < 1e-6


def test_lora_roles_share_one_base(make_roles: MakeRoles) -> None:
    roles = make_roles(replace(UNMONITORED, lora=Lora(rank=2)))
    assert len({id(network) for network in roles.networks.values()}) == 1
    own = {role: {id(w) for w in roles.weights(role).values()} for role in ("student", "critic", "refiner")}
    assert own["student"].isdisjoint(own["critic"] | own["refiner"])


def test_renoise_keeps_latent_zero_clean(make_roles: MakeRoles, make_batch: MakeBatch) -> None:
    roles = make_roles()
    module = DmdModule(
        roles, UNMONITORED, UNMONITORED.on_policy, OnPolicySampler(roles, UNMONITORED, "student"), name=""
    )
    clip = make_batch(roles).latents
    noisy, sigma, noise = module.renoise(clip, torch.Generator().manual_seed(0))
    assert torch.equal(noisy[:, :, 0], clip[:, :, 0])
    assert torch.equal(sigma[:, 0], torch.zeros(2))
    assert torch.equal(sigma[:, 1:], sigma[:, 1:2].expand(-1, 3))
    level = sigma[:, None, :, None, None]
    assert torch.allclose(noisy, (1 - level) * clip + level * noise)


def test_on_policy_rollout_starts_with_image_and_is_deterministic(make_roles: MakeRoles, make_batch: MakeBatch) -> None:
    roles = make_roles()
    sampler, batch = OnPolicySampler(roles, UNMONITORED, "student"), make_batch(roles)
    state = batch.generator.get_state()
    first = sampler.sample(batch, shared(), train=False).clip
    assert torch.equal(first[:, :, 0], batch.latents[:, :, 0])
    assert first.shape == batch.latents.shape
    batch.generator.set_state(state)
    assert torch.equal(sampler.sample(batch, shared(), train=False).clip, first)
    assert not torch.equal(sampler.sample(batch, shared(), train=False).clip, first)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("latents", [4, 7, 12, 40])
@pytest.mark.parametrize("gradient", [0, 1, 3, 7])
def test_rollout_spans_are_nested(chunk: int, latents: int, gradient: int) -> None:
    settings = replace(UNMONITORED, clip_latents=7, gradient_latents=gradient)
    spans = RolloutSpans.of(latents, chunk, settings)
    assert (spans.end - 1) % chunk == (spans.gradient_start - 1) % chunk == 0
    assert latents - chunk < spans.end <= latents
    assert spans.end - spans.first == min(7, spans.end)
    assert spans.first < spans.gradient_start <= spans.end - chunk
    if gradient:
        assert spans.end - spans.gradient_start <= max(gradient, chunk)


def test_rebased_rollout_end_is_a_clip() -> None:
    held, image = tiny.normal(2, 16, 4, 4, 4), tiny.normal(2, 16, 1, 4, 4, seed=1)
    codec = LatentCodec(2.0)
    clip = codec.rebase(held, image)
    assert torch.allclose(codec.decode_clip(clip), codec.decode(held, image), atol=1e-5)
    assert torch.equal(LatentCodec(0.0).rebase(held, image), held)


def test_on_policy_sample_is_the_end_of_the_rollout(make_roles: MakeRoles, make_batch: MakeBatch) -> None:
    roles = make_roles()
    batch = make_batch(roles, latents=9)
    state = batch.generator.get_state()
    whole = OnPolicySampler(roles, replace(UNMONITORED, clip_latents=9), "student").sample(batch, shared(), train=False)
    batch.generator.set_state(state)
    end = OnPolicySampler(roles, UNMONITORED, "student").sample(batch, shared(), train=False)
    codec = roles.online.codec
    assert torch.allclose(codec.decode_clip(end.clip), codec.decode_clip(whole.clip)[:, :, 5:], atol=1e-5)
    assert whole.conditions.speak is not None
    assert end.conditions.speak is not None
    assert torch.equal(end.conditions.speak, whole.conditions.speak[:, 5:])


def test_refiner_starts_from_detached_student_rollout(make_roles: MakeRoles, make_batch: MakeBatch) -> None:
    coarse_seen: list[Tensor] = []
    roles = make_roles()
    refine = roles.online.refine

    def noted(cache: object, coarse: Tensor, *rest: object) -> Tensor:
        coarse_seen.append(coarse)
        return refine(cache, coarse, *rest)  # type: ignore[arg-type]

    roles.online.refine = noted  # type: ignore[method-assign, assignment]
    batch = make_batch(roles)
    OnPolicySampler(roles, UNMONITORED, "refiner").sample(batch, shared(), train=True)
    assert not any(coarse.requires_grad for coarse in coarse_seen)
    assert len(coarse_seen) == 3


@contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """Measure the storage that autograd saves for the backward pass."""
    held: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        yield held


@pytest.mark.parametrize("role", ["student", "refiner"])
@pytest.mark.parametrize("gradient", [0, 2])
def test_saved_activations_do_not_grow_with_rollout_length(
    role: Role, gradient: int, make_roles: MakeRoles, make_batch: MakeBatch
) -> None:
    settings = replace(UNMONITORED, gradient_latents=gradient)
    roles = make_roles(settings)
    module = DmdModule(roles, settings, settings.on_policy, OnPolicySampler(roles, settings, role), name="")
    counted = []
    for latents in (5, 9):  # the cache is full in both
        with saved_bytes() as held:
            loss = module.student_loss(make_batch(roles, latents=latents), shared())
        counted.append(sum(held.values()))
        assert loss.requires_grad
        loss.backward()
    assert counted[1] <= 1.05 * counted[0]
