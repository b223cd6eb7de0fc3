"""Streaming long tuning: a rollout that continues from step to step, and switches of its conditions."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lpm_model.dit import Conditions
from lpm_model.rollout import Noise
from lpm_model.training.distill.config import LongStage
from lpm_model.training.distill.long_rollout import StreamingSampler, Switch, extend_audio
from lpm_model.training.distill.roles import ModelRoles
from lpm_model.training.distill.rollout_samplers import start_cache
from lpm_model.training.engine.data import Batch
from tests.lpm_model import tiny
from tests.lpm_model.training.distill.conftest import UNMONITORED


class Given(Noise):
    """Returns the given noise."""

    def __init__(self, drawn: list[Tensor]) -> None:
        super().__init__(tuple(drawn[0].shape))
        self.left = iter(drawn)

    def draw(self) -> Tensor:
        return next(self.left)


MakeRoles, MakeBatch = Callable[..., ModelRoles], Callable[..., Batch]
WITHOUT_SWITCH = replace(UNMONITORED, long=LongStage(latents=9, switch_prob=0.0))


def exits(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(numbers))


def test_streaming_steps_equal_one_rollout(
    make_roles: MakeRoles, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lpm_model.training.distill.long_rollout.draw_exit_index", lambda *_: 1)
    roles = make_roles(WITHOUT_SWITCH)
    online, context = roles.online, roles.online.config.context_latents
    sampler, batches = StreamingSampler(roles, WITHOUT_SWITCH), [make_batch(roles, step=step) for step in range(3)]
    states = [batch.generator.get_state() for batch in batches]
    samples = [sampler.sample(batch, exits(), train=False) for batch in batches]

    def voice(name: str) -> Tensor:
        given = [getattr(batch.conditions, name) for batch in batches]
        return torch.cat([given[0], *(later[:, context + 1 :] for later in given[1:])], dim=1)

    first = batches[0]
    heard = replace(first.conditions, speak=voice("speak"), listen=voice("listen"))
    image = first.latents[:, :, :1]
    drawn = []
    for batch, state in zip(batches, states, strict=True):
        batch.generator.set_state(state)
        drawn += [torch.randn(2, 16, 1, 4, 4, generator=batch.generator) for _ in range(3 * 3)]
    cache = start_cache(online, image, heard)
    whole = torch.cat([c for _, c in online.rollout(cache, heard, 10, Given(drawn), first=1)], dim=2)
    absolute = torch.cat([image, online.codec.decode(whole, image)], dim=2)
    for number, sample in enumerate(samples):
        own = online.codec.decode_clip(sample.clip)
        assert torch.allclose(own, absolute[:, :, 3 * number : 3 * number + 4], atol=1e-5), number
        for name in ("speak", "listen"):
            cut = voice(name)[:, 3 * number : 3 * number + context + 4]
            assert torch.equal(getattr(sample.conditions, name), cut)
    sampler.sample(batches[0], exits(), train=False)
    assert sampler.rollout is not None
    assert sampler.rollout.latents == 3  # it has started again


def test_extend_audio_appends_and_switches_at_chunk_boundary() -> None:
    def ramp(start: float, rows: int = 2) -> Tensor:
        frames = torch.arange(8.0) + start
        return torch.stack([frames, frames + 1000])[:rows, :, None, None]

    before = Conditions(speak=ramp(-8), listen=ramp(-108))
    given = Conditions(speak=ramp(0), listen=ramp(100))

    def own(switch: Switch | None, row: int = 0) -> tuple[list[float], list[float]]:
        heard = extend_audio(before, given, 2, 4, switch)
        assert heard.speak is not None
        assert heard.listen is not None
        assert torch.equal(heard.speak[:, :8], ramp(-8))
        return heard.speak[row, 8:].flatten().tolist(), heard.listen[row, 8:].flatten().tolist()

    assert own(None) == own(Switch(2, "text")) == ([2, 3, 4, 5], [102, 103, 104, 105])
    assert own(Switch(1, "turn")) == ([2, 103, 104, 105], [102, 3, 4, 5])
    assert own(Switch(3, "clip")) == ([2, 3, 4, 1005], [102, 103, 104, 1105])
    assert own(Switch(0, "clip"), row=1) == ([2, 3, 4, 5], [102, 103, 104, 105])


def test_switches_of_every_kind_are_at_chunk_boundaries(make_roles: MakeRoles) -> None:
    online = tiny.online_config(chunk_latents=3, refiner_sigma=0.3)
    settings = replace(UNMONITORED, online=online, clip_latents=14, long=LongStage(switch_prob=0.7))
    sampler = StreamingSampler(make_roles(settings), settings)
    drawn = [sampler.draw(torch.Generator().manual_seed(seed)) for seed in range(300)]
    happened = [switch for switch in drawn if switch is not None]
    assert 0.6 < len(happened) / len(drawn) < 0.8
    assert {switch.kind for switch in happened} == {"turn", "clip", "text"}
    assert {switch.at for switch in happened} == {0, 3, 6, 9}


@pytest.mark.parametrize("on_prompt_change", ["keep", "recompute"])
def test_prompt_change_is_scored_only_after_the_switch(
    on_prompt_change: str, make_roles: MakeRoles, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(UNMONITORED, online=tiny.online_config(on_prompt_change=on_prompt_change, refiner_sigma=0.3))
    roles = make_roles(settings)
    first, second = make_batch(roles, step=0), make_batch(roles, step=1)
    other = replace(second, conditions=replace(second.conditions, text=tiny.normal(2, 4, 8, seed=9)))
    made = {}
    for name, switch in (("before", None), ("after", Switch(1, "text"))):
        for batch in (first, second):
            batch.generator.manual_seed(3)
        sampler = StreamingSampler(roles, settings)
        monkeypatch.setattr(sampler, "draw", lambda _, switch=switch: None)
        sampler.sample(first, exits(), train=False)
        monkeypatch.setattr(sampler, "draw", lambda _, switch=switch: switch)
        made[name] = sampler.sample(other, exits(), train=False)
        assert sampler.rollout is not None
        running = sampler.rollout.conditions.text
    assert made["before"].first == 1
    assert made["after"].first == 2
    assert made["after"].conditions.text is not None
    assert torch.equal(made["after"].conditions.text, tiny.normal(2, 4, 8, seed=9))
    assert running is not None
    assert torch.equal(running, tiny.normal(2, 4, 8, seed=9))
    assert torch.equal(made["before"].clip[:, :, :2], made["after"].clip[:, :, :2])
    assert not torch.allclose(made["before"].clip[:, :, 2:], made["after"].clip[:, :, 2:])
