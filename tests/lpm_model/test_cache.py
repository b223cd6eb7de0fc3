"""The KV cache against a plain list."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpm_model.cache import KVCache
from lpm_model.config import OnlineConfig

TOKENS, HEADS, WIDTH = 2, 1, 4


def make(sink: int, window: int, batch: int = 1, layers: int = 1) -> KVCache:
    online = OnlineConfig(sink_latents=sink, window_latents=window)
    return KVCache.empty(layers, batch, TOKENS, HEADS, WIDTH, online, torch.zeros(1))


def put(cache: KVCache, chunk: int) -> None:
    """Write a chunk whose keys carry their latent's number, and 1000 x row; values are the negatives."""
    latents = cache.written[:, None] + torch.arange(chunk)
    marks = (latents + 1000 * torch.arange(latents.shape[0])[:, None]).float()
    keys = marks.repeat_interleave(TOKENS, 1)[..., None, None].expand(-1, -1, HEADS, WIDTH)
    for layer in range(cache.keys.shape[0]):
        cache.write(layer, keys, -keys)
    cache.advance(chunk)


def expected(written: int, sink: int, window: int) -> dict[int, int]:
    """Temporal position of each kept latent, from a list that forgets."""
    every = list(range(written))
    kept = every[:sink] + every[sink:][-window:]
    if written <= sink + window:
        return {latent: latent for latent in kept}
    return dict(zip(kept, range(sink + window), strict=True))


def past(cache: KVCache) -> tuple[torch.Tensor, torch.Tensor]:
    """What attention reads, [B, keys, N, D], under a rotation by nothing."""
    slots = cache.layout(1).slots
    turn = torch.ones(cache.reference_keys.shape[2] + slots * TOKENS, WIDTH // 2, dtype=torch.complex64)
    keys, values = cache.past(0, slots, turn, torch.float32)
    return keys.permute(0, 3, 1, 2), values.transpose(1, 2)


def contents(cache: KVCache, row: int, chunk: int) -> dict[int, int]:
    layout = cache.layout(chunk)
    keys, values = past(cache)
    assert torch.equal(keys, -values)
    marks = keys[row, :, 0, 0].unflatten(0, (layout.slots, TOKENS)).long() - 1000 * row
    assert bool((marks == marks[:, :1]).all())
    valid = torch.ones(layout.slots, dtype=torch.bool) if layout.valid is None else layout.valid[row]
    pairs = zip(marks[valid, 0].tolist(), layout.slot_positions[row, valid].tolist(), strict=True)
    return dict(pairs)


@given(st.integers(1, 4), st.integers(6, 9), st.sampled_from([1, 3, 6]), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_layout_is_that_of_a_list_that_forgets(sink: int, window: int, chunk: int, writes: int) -> None:
    cache = make(sink, window)
    put(cache, 1)
    for _ in range(writes):
        put(cache, chunk)
    written = 1 + writes * chunk
    assert contents(cache, 0, chunk) == expected(written, sink, window)
    start = min(written, sink + window)
    assert cache.layout(chunk).chunk_positions.tolist() == [list(range(start, start + chunk))]


@given(st.lists(st.integers(0, 14), min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_rows_stand_at_their_own_positions(counts: list[int]) -> None:
    cache = make(2, 4, batch=len(counts))
    single = [make(2, 4, batch=len(counts)) for _ in counts]
    for row, count in enumerate(counts):
        for _ in range(1 + count):
            put(single[row], 1)
        cache.take(torch.arange(len(counts)) == row, single[row])
    for row, count in enumerate(counts):
        assert contents(cache, row, 1) == expected(1 + count, 2, 4)
        assert cache.layout(1).chunk_positions[row, 0] == min(1 + count, 6)


def test_mask_counts_references_own_slots_and_the_chunk() -> None:
    cache, ahead = make(2, 4, batch=2), make(2, 4, batch=2)
    cache.reference_keys = cache.reference_values = torch.zeros(1, 2, 3, HEADS, WIDTH)
    put(cache, 1)
    assert cache.mask(cache.layout(1), 1) is None
    for _ in range(3):
        put(ahead, 1)
    ahead.reference_keys = ahead.reference_values = cache.reference_keys
    cache.take(torch.tensor([False, True]), ahead)
    mask = cache.mask(cache.layout(1), 1)
    assert mask is not None
    assert mask.shape == (2, 1, 1, 3 + 3 * TOKENS + TOKENS)
    assert mask[0].flatten().tolist() == [True] * 5 + [False] * 4 + [True] * 2
    assert bool(mask[1].all())


@given(st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_positions_and_memory_are_bounded(writes: int) -> None:
    cache = make(2, 5)
    before = cache.nbytes
    for _ in range(writes):
        put(cache, 1)
    assert cache.nbytes == before == 2 * 7 * TOKENS * HEADS * WIDTH * 4
    layout = cache.layout(3)
    assert int(layout.chunk_positions.max()) <= 2 + 5 + 2
    assert layout.slots <= cache.capacity


def test_take_leaves_other_rows_bit_for_bit() -> None:
    own, other = make(2, 4, batch=3, layers=2), make(2, 4, batch=3, layers=2)
    for _ in range(9):
        put(own, 1)
    put(other, 1)
    before = copy.deepcopy(own)
    own.take(torch.tensor([False, True, False]), other)
    assert own.written.tolist() == [9, 1, 9]
    for name in ("keys", "values"):
        for row in (0, 2):
            assert torch.equal(getattr(own, name)[:, row], getattr(before, name)[:, row])
        assert torch.equal(getattr(own, name)[:, 1], getattr(other, name)[:, 1])


def test_references_are_never_evicted() -> None:
    cache = make(1, 6)
    cache.reference_keys = cache.reference_values = torch.full((1, 1, 3, HEADS, WIDTH), 7.0)
    for _ in range(30):
        put(cache, 1)
    keys, _ = past(cache)
    assert torch.equal(keys[:, :3], torch.full((1, 3, HEADS, WIDTH), 7.0))


def test_a_cache_smaller_than_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one chunk"):
        OnlineConfig(chunk_latents=6, window_latents=5)


def test_what_is_kept_ready_follows_the_counter() -> None:
    cache, other = make(1, 6), make(1, 6)
    put(cache, 1)
    first, _ = past(cache)
    put(cache, 1)
    second, _ = past(cache)
    assert (first.shape[1], second.shape[1]) == (TOKENS, 2 * TOKENS)
    put(other, 1)
    cache.take(torch.tensor([True]), other)
    assert torch.equal(past(cache)[0], first)
