"""Self-attention of one forward pass, planned once for all layers: over the pass's own tokens, or over a KV cache too.

B batch, L tokens of the pass, P cached keys (references first, then the slots in use), N heads, D head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from lpm_model.attention import attend, attend_with_past, rope3d, use_naive_attention
from lpm_model.cache import CacheLayout, KVCache
from lpm_model.config import ABSENT
from lpm_model.prepared_keys import StaticBuffers
from lpm_model.sequence_parallel import SequenceGroup

Rotate = Callable[[Tensor, Tensor], Tensor]
"""lpm_model.attention.rotate, or its compiled form."""


class AttentionPlan(Protocol):
    """How the tokens of one forward pass attend to each other and to a history."""

    @property
    def rotation(self) -> Tensor:
        """[L, D] or [B, L, D] rotation of the pass's own tokens, from `rope3d`."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attention output of one layer.

        Args:
            layer: index of the transformer block.
            query: [B, L, N, D], rotated.
            key: [B, L, N, D], rotated.
            value: [B, L, N, D].

        Returns:
            [B, L, N * D].
        """
        ...


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Bidirectional attention over the tokens of the pass."""

    rotation: Tensor
    mask: Tensor | None = None
    """[B, 1, 1, L], True where a key is attended to; None masks nothing."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `AttentionPlan.attend`."""
        return attend(query, key, value, self.mask)


@dataclass(frozen=True, slots=True)
class SequenceParallelAttention:
    """Bidirectional attention over the tokens of several processes."""

    rotation: Tensor
    """Of this process's tokens."""
    group: SequenceGroup

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `AttentionPlan.attend`; L counts this process's tokens."""
        return self.group.attend(query, key, value)


@dataclass(frozen=True, slots=True)
class CachedAttention:
    """Causal attention of a chunk over references, sink, ring and itself."""

    cache: KVCache
    layout: CacheLayout
    rotation: Tensor
    """[B, L, D] of the chunk's tokens."""
    past_rotation: Tensor
    """[B, P, D] of the cached keys."""
    mask: Tensor | None
    """[B, 1, 1, P + L], True where a key is attended to; None masks nothing."""
    rotate: Rotate

    @classmethod
    def plan(
        cls, cache: KVCache, grid: tuple[int, int, int], rope_split: tuple[int, int, int], rotate: Rotate
    ) -> "CachedAttention":
        """Plan the pass of the next chunk.

        Args:
            cache: history; nothing may be written to it before the pass has read it.
            grid: latent frames, token rows and token columns of the chunk.
            rope_split: channels of a head for time, row, column.
            rotate: rotates the cached keys.
        """
        frames, rows, columns = grid
        layout = cache.layout(frames)
        positions = torch.cat([cache.reference_positions, layout.slot_positions], dim=1)
        return cls(
            cache=cache,
            layout=layout,
            rotation=rope3d(layout.chunk_positions, rows, columns, rope_split),
            past_rotation=rope3d(positions, rows, columns, rope_split),
            mask=key_mask(cache, layout, frames),
            rotate=rotate,
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `AttentionPlan.attend`."""
        past = self.past_rotation.shape[1]
        naive = use_naive_attention(query.shape[1], past + key.shape[1], query.device)
        keys, values = self.cached_keys(layer, value.dtype, naive=naive)
        if naive:
            return attend_with_past(query, keys, values, key, value, self.mask)
        if keys.shape[2] > past:  # static buffers with space for the chunk's own keys
            keys[:, :, past:], values[:, :, past:] = key.transpose(1, 2), value.transpose(1, 2)
        else:
            keys = torch.cat([keys, key.transpose(1, 2)], dim=2)
            values = torch.cat([values, value.transpose(1, 2)], dim=2)
        return attend(query, keys.transpose(1, 2), values.transpose(1, 2), self.mask)

    def cached_keys(self, layer: int, dtype: torch.dtype, *, naive: bool) -> tuple[Tensor, Tensor]:
        """Return the references and the slots in use, rotated once per chunk.

        Returns:
            Rotated keys [B, N, D, P] for naive attention, else [B, N, P, D], and values [B, N, P, D]. The fused
            kernel's static buffers end in space for the chunk's own keys.
        """
        prepared, index = self.cache.prepared, self.cache.first_layer + layer
        if index not in prepared.layers:
            static = prepared.static if self.layout.slots == self.cache.capacity else None
            if static is not None and (static.naive, static.keys.dtype) == (naive, dtype):
                prepared.layers[index] = self._refill(static, layer)
            else:
                keys, values = self._gather(layer, self.layout.slots)
                order = "b p n d -> b n d p" if naive else "b p n d -> b n p d"
                rotated = rearrange(self.rotate(keys, self.past_rotation).to(dtype), order)
                prepared.layers[index] = rotated.contiguous(), values.to(dtype).transpose(1, 2).contiguous()
        return prepared.layers[index]

    def _gather(self, layer: int, slots: int) -> tuple[Tensor, Tensor]:
        """Return keys before RoPE and values, [B, P, N, D] each, of the references and the first slots."""
        cache, index = self.cache, self.cache.first_layer + layer
        keys = [cache.reference_keys[layer], cache.keys[index][:, :slots].flatten(1, 2)]
        values = [cache.reference_values[layer], cache.values[index][:, :slots].flatten(1, 2)]
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)

    def _refill(self, static: StaticBuffers, layer: int) -> tuple[Tensor, Tensor]:
        """Update a layer's static buffers; references and sink are written until they are final, then only the ring."""
        cache, past = self.cache, self.past_rotation.shape[1]
        index = cache.first_layer + layer
        if index in static.filled_layers:
            begin = cache.reference_keys.shape[2] + cache.sink * cache.tokens
            keys, values = (x[index][:, cache.sink :].flatten(1, 2) for x in (cache.keys, cache.values))
        else:
            begin, (keys, values) = 0, self._gather(layer, cache.capacity)
        by_token = static.keys[index].transpose(2, 3) if static.naive else static.keys[index]
        by_token[:, :, begin:past] = self.rotate(keys, self.past_rotation[:, begin:]).transpose(1, 2)
        static.values[index][:, :, begin:past] = values.transpose(1, 2)
        if self.layout.valid is None:
            static.filled_layers.add(index)
        return static.keys[index], static.values[index]


def key_mask(cache: KVCache, layout: CacheLayout, chunk: int) -> Tensor | None:
    """Return the mask of the keys to attend to: present references, slots in use, and the chunk's own.

    Args:
        cache: history.
        layout: from `KVCache.layout`.
        chunk: latent frames of the chunk.

    Returns:
        [B, 1, 1, P + L], or None if nothing is masked.
    """
    present, host = cache.reference_positions != ABSENT, cache.prepared.host
    if host.all_references is None:
        host.all_references = bool(present.all())
    if layout.valid is None and host.all_references:
        return None
    batch = present.shape[0]
    valid = present.new_ones(batch, layout.slots) if layout.valid is None else layout.valid
    counts = torch.cat([present, valid, present.new_ones(batch, chunk)], dim=1)
    return counts.repeat_interleave(cache.tokens, dim=1)[:, None, None]
