"""The KV cache against a list with eviction."""

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpm_model import attention
from lpm_model.attention import rotate
from lpm_model.attention_plan import CachedAttention, key_mask
from lpm_model.cache import KVCache
from lpm_model.config import ABSENT, OnlineConfig
from lpm_model.rollout import Noise
from tests.lpm_model.tiny import conditions, online_config, online_model, person

TOKENS, HEADS, WIDTH = 2, 1, 4


def empty_cache(sink: int, window: int, batch: int = 1, layers: int = 1) -> KVCache:
    online = OnlineConfig(sink_latents=sink, window_latents=window)
    return KVCache.empty(layers, batch, TOKENS, HEADS, WIDTH, online, torch.zeros(1))


def write_chunk(cache: KVCache, chunk: int) -> None:
    """Write a chunk whose keys are latent index + 1000 x row, and whose values are the negatives."""
    latents = cache.written[:, None] + torch.arange(chunk)
    marks = (latents + 1000 * torch.arange(latents.shape[0])[:, None]).float()
    keys = marks.repeat_interleave(TOKENS, 1)[..., None, None].expand(-1, -1, HEADS, WIDTH)
    for layer in range(cache.keys.shape[0]):
        cache.write(layer, keys, -keys)
    cache.advance(chunk)


def expected(written: int, sink: int, window: int) -> dict[int, int]:
    """Temporal position of each cached latent, from a list with eviction."""
    every = list(range(written))
    kept = every[:sink] + every[sink:][-window:]
    if written <= sink + window:
        return {latent: latent for latent in kept}
    return dict(zip(kept, range(sink + window), strict=True))


def plan_of(cache: KVCache) -> CachedAttention:
    """Return the attention plan of a chunk of one latent frame with one row of tokens."""
    return CachedAttention.plan(cache, (1, 1, TOKENS), (cache.keys.shape[-1] - 4, 2, 2), rotate)


def cached_keys(cache: KVCache) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values that attention reads, [B, keys, N, D] each, without rotation."""
    plan = replace(plan_of(cache), rotate=lambda keys, rotation: keys)
    found, values = plan.cached_keys(0, torch.float32, naive=True)
    return found.permute(0, 3, 1, 2), values.transpose(1, 2)


def add_references(cache: KVCache, positions: list[list[int]], value: float = 0.0) -> None:
    """Add references at these positions to a cache, one list per row."""
    shape = (cache.keys.shape[0], len(positions), len(positions[0]) * TOKENS, HEADS, WIDTH)
    cache.reference_keys = cache.reference_values = torch.full(shape, value)
    cache.reference_positions = torch.tensor(positions)


def contents(cache: KVCache, row: int, chunk: int) -> dict[int, int]:
    layout = cache.layout(chunk)
    keys, values = cached_keys(cache)
    assert torch.equal(keys, -values)
    marks = keys[row, :, 0, 0].unflatten(0, (layout.slots, TOKENS)).long() - 1000 * row
    assert bool((marks == marks[:, :1]).all())
    valid = torch.ones(layout.slots, dtype=torch.bool) if layout.valid is None else layout.valid[row]
    pairs = zip(marks[valid, 0].tolist(), layout.slot_positions[row, valid].tolist(), strict=True)
    return dict(pairs)


@given(st.integers(1, 4), st.integers(6, 9), st.sampled_from([1, 3, 6]), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_ring_cache_evicts_oldest_latent(sink: int, window: int, chunk: int, writes: int) -> None:
    cache = empty_cache(sink, window)
    write_chunk(cache, 1)
    for _ in range(writes):
        write_chunk(cache, chunk)
    written = 1 + writes * chunk
    assert contents(cache, 0, chunk) == expected(written, sink, window)
    start = min(written, sink + window)
    assert cache.layout(chunk).chunk_positions.tolist() == [list(range(start, start + chunk))]


@given(st.lists(st.integers(0, 14), min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_layout_positions_are_per_row(counts: list[int]) -> None:
    cache = empty_cache(2, 4, batch=len(counts))
    single = [empty_cache(2, 4, batch=len(counts)) for _ in counts]
    for row, count in enumerate(counts):
        for _ in range(1 + count):
            write_chunk(single[row], 1)
        cache.replace_rows(torch.arange(len(counts)) == row, single[row])
    for row, count in enumerate(counts):
        assert contents(cache, row, 1) == expected(1 + count, 2, 4)
        assert cache.layout(1).chunk_positions[row, 0] == min(1 + count, 6)


def test_key_mask_covers_references_slots_and_chunk() -> None:
    cache, ahead = empty_cache(2, 4, batch=2), empty_cache(2, 4, batch=2)
    add_references(cache, [[-1], [-1]])
    write_chunk(cache, 1)
    assert key_mask(cache, cache.layout(1), 1) is None
    for _ in range(3):
        write_chunk(ahead, 1)
    add_references(ahead, [[-1], [-3]])
    cache.replace_rows(torch.tensor([False, True]), ahead)
    mask = key_mask(cache, cache.layout(1), 1)
    assert mask is not None
    assert mask.shape == (2, 1, 1, (1 + 3 + 1) * TOKENS)
    assert mask[0].flatten().tolist() == [True] * 4 + [False] * 4 + [True] * 2
    assert bool(mask[1].all())
    assert cache.reference_positions.tolist() == [[-1], [-3]]


def test_key_mask_excludes_absent_references() -> None:
    cache, other = empty_cache(1, 4, batch=2), empty_cache(1, 4, batch=2)
    add_references(cache, [[-1], [-1]], 1.0)
    add_references(other, [[-1, -2], [-1, -6]], 2.0)
    write_chunk(cache, 1)
    write_chunk(other, 1)
    cache.replace_rows(torch.tensor([True, False]), other)
    assert cache.reference_positions.tolist() == [[-1, -2], [-1, ABSENT]]
    mask = key_mask(cache, cache.layout(1), 1)
    assert mask is not None
    assert bool(mask[0].all())
    assert mask[1].flatten().tolist() == [True] * 2 + [False] * 2 + [True] * 4
    assert cache.reference_keys[0, 0].unique().tolist() == [2.0]
    assert cache.reference_keys[0, 1, :TOKENS].unique().tolist() == [1.0]
    assert other.reference_positions.tolist() == [[-1, -2], [-1, -6]]


@given(st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_positions_and_memory_are_bounded(writes: int) -> None:
    cache = empty_cache(2, 5)
    before = cache.nbytes
    for _ in range(writes):
        write_chunk(cache, 1)
    assert cache.nbytes == before == 2 * 7 * TOKENS * HEADS * WIDTH * 4
    layout = cache.layout(3)
    assert int(layout.chunk_positions.max()) <= 2 + 5 + 2
    assert layout.slots <= cache.capacity


def test_replace_rows_keeps_other_rows_bit_equal() -> None:
    own, other = empty_cache(2, 4, batch=3, layers=2), empty_cache(2, 4, batch=3, layers=2)
    for _ in range(9):
        write_chunk(own, 1)
    write_chunk(other, 1)
    before = copy.deepcopy(own)
    own.replace_rows(torch.tensor([False, True, False]), other)
    assert own.written.tolist() == [9, 1, 9]
    for name in ("keys", "values"):
        for row in (0, 2):
            assert torch.equal(getattr(own, name)[:, row], getattr(before, name)[:, row])
        assert torch.equal(getattr(own, name)[:, 1], getattr(other, name)[:, 1])


def test_references_are_never_evicted() -> None:
    cache = empty_cache(1, 6)
    add_references(cache, [[-1, -2]], 7.0)
    for _ in range(30):
        write_chunk(cache, 1)
    keys, _ = cached_keys(cache)
    assert torch.equal(keys[:, : 2 * TOKENS], torch.full((1, 2 * TOKENS, HEADS, WIDTH), 7.0))


def test_config_rejects_window_smaller_than_chunk() -> None:
    with pytest.raises(ValueError, match="at least one chunk"):
        OnlineConfig(chunk_latents=6, window_latents=5)


def test_prepared_keys_are_invalidated_when_the_cache_advances() -> None:
    cache, other = empty_cache(1, 6), empty_cache(1, 6)
    write_chunk(cache, 1)
    first, _ = cached_keys(cache)
    write_chunk(cache, 1)
    second, _ = cached_keys(cache)
    assert (first.shape[1], second.shape[1]) == (TOKENS, 2 * TOKENS)
    write_chunk(other, 1)
    cache.replace_rows(torch.tensor([True]), other)
    assert torch.equal(cached_keys(cache)[0], first)


@pytest.mark.parametrize("max_scores", [0, 1 << 20], ids=["fused", "naive"])
@given(st.lists(st.sampled_from(["write", "write", "write", "replace", "level"]), min_size=1, max_size=14))
@settings(max_examples=25, deadline=None)
def test_static_buffers_equal_newly_allocated_ones(max_scores: int, plan: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "NAIVE_ATTENTION_MAX_SCORES", max_scores)
        draw = torch.Generator().manual_seed(len(plan))
        online = OnlineConfig(sink_latents=2, window_latents=3)
        static, fresh = (KVCache.empty(1, 2, TOKENS, HEADS, 8, online, torch.zeros(1), levels=2) for _ in range(2))
        for cache in (static, fresh):
            shape = (1, 2, TOKENS, HEADS, 8)
            cache.reference_keys, cache.reference_values = torch.ones(shape), torch.full(shape, 2.0)
            cache.reference_positions = torch.full((2, 1), -1)
            cache.advance(1)
        static.allocate_static(1)
        before = copy.deepcopy(fresh)
        level = 0
        for act in ["write"] * 5 + plan:
            if act == "replace":
                for cache in (static, fresh):
                    cache.replace_rows(torch.tensor([False, True]), before)
            level = 1 - level if act == "level" else level
            new = torch.randn(3, 2, TOKENS, HEADS, 8, generator=draw)
            seen = [attend_chunk(cache.level(level), new) for cache in (static, fresh)]
            assert torch.allclose(*seen, atol=1e-5)
            if act == "write":
                for cache in (static, fresh):
                    cache.level(level).write(0, new[1], new[2])
                    cache.advance(1)
        buffers = static.prepared.static
        assert buffers is not None
        assert buffers.naive == bool(max_scores)


def attend_chunk(cache: KVCache, own: torch.Tensor) -> torch.Tensor:
    """Attend from a chunk of one latent frame; own [3, B, tokens, N, D] are its queries, keys and values."""
    plan = plan_of(cache)
    return plan.attend(0, rotate(own[0], plan.rotation), rotate(own[1], plan.rotation), own[2])


@given(st.integers(0, 12), st.integers(1, 3), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_replace_window_restores_slots_and_positions(writes: int, sink: int, window: int) -> None:
    cache = empty_cache(sink, window, batch=2)
    cache.latents = torch.zeros(2, window, 1, 1, 1)
    for number in range(1 + writes):
        cache.store_latents(torch.full((2, 1, 1, 1, 1), float(number)))
        write_chunk(cache, 1)
    before = copy.deepcopy(cache)
    fresh, latents, first = cache.window_of(1)
    kept = list(range(max(sink, 1 + writes - window), 1 + writes))
    assert latents.flatten().tolist() == kept
    assert int(fresh.written) == min(sink, 1 + writes)
    for number in kept:
        marks = torch.full((1, TOKENS, HEADS, WIDTH), 1000.0 + number)
        fresh.write(0, marks, -marks)
        fresh.advance(1)
    if kept:
        assert first == kept[0]
        cache.replace_window(1, fresh, first)
    assert torch.equal(cache.keys, before.keys)
    assert contents(cache, 1, 1) == expected(1 + writes, sink, window)


@pytest.mark.parametrize("history", ["pass", "per_step"])
def test_chunk_over_full_cache_does_not_synchronise_with_device(history: str) -> None:
    """On the meta device any read of a value fails."""
    online = online_model(online_config(history=history))
    cache, given = online.prefill(person(), static=True), conditions(1).without("references")
    noise = Noise((1, 16, 1, 4, 4))

    def chunk() -> None:
        for _ in online.rollout(cache, given, 1, noise):
            pass

    for _ in range(2 * cache.capacity):
        chunk()
    meta = torch.device("meta")
    online.to(meta)
    held: dict[str, Any] = {f.name: getattr(cache, f.name) for f in fields(cache)}
    held |= {name: t.to(meta) for name, t in held.items() if isinstance(t, torch.Tensor)}
    cache = KVCache(**held)
    cache.allocate_static(1)
    given, noise.device = given.map(lambda t: t.to(meta)), meta
    for _ in range(2):
        chunk()
    assert cache.prepared.host.filled_slots == [cache.capacity]
