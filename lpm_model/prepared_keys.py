"""Data derived from a KV cache for its forward passes: rotated keys, static buffers, CUDA graphs, host-side state.

Nothing here is part of a saved state: lpm_model.attention_plan computes all of it from the cache.

B batch, T tokens a latent frame, N heads, D head width, P cached keys (references, sink and ring), c latent frames of
a chunk.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lpm_model.attention import use_naive_attention
from lpm_model.cuda_graphs import GraphCache


@dataclass(slots=True)
class StaticBuffers:
    """Buffers of fixed addresses for the cached keys and values, rotated and laid out for the attention kernel.

    The fused kernel's buffers end in space for the chunk's own keys, so that nothing is concatenated.
    """

    chunk_latents: int
    naive: bool
    """Laid out for two matmuls, else for the fused kernel."""
    keys: Tensor
    """[levels * layers, B, N, D, P] for matmuls, [levels * layers, B, N, P + c * T, D] for the fused kernel."""
    values: Tensor
    """[levels * layers, B, N, P (+ c * T), D]."""
    filled_layers: set[int] = field(default_factory=set)
    """Layers whose references and sink have been copied; their positions never change, so they are rotated once."""

    @classmethod
    def allocate(cls, chunk_latents: int, cached: Tensor, reference_tokens: int) -> "StaticBuffers":
        """Allocate the buffers of a cache.

        Args:
            chunk_latents: c.
            cached: [levels * layers, B, S + W, T, N, D], the cache's keys.
            reference_tokens: keys of the references.
        """
        layers, batch, slots, tokens, heads, width = cached.shape
        past, own = reference_tokens + slots * tokens, chunk_latents * tokens
        naive = use_naive_attention(own, past + own, cached.device)
        length = past if naive else past + own
        values = cached.new_zeros(layers, batch, heads, length, width)
        keys = cached.new_zeros(layers, batch, heads, width, length) if naive else torch.zeros_like(values)
        return cls(chunk_latents, naive, keys, values)


@dataclass(slots=True)
class HostState:
    """Host copies of facts about the rows, so that no pass waits for the device; None = not read yet."""

    filled_slots: list[int] | None = None
    """Slots in use by each row."""
    all_references: bool | None = None
    """Whether no row lacks a reference."""


@dataclass(slots=True)
class PreparedKeys:
    """All data derived from one cache, shared by the views of its levels."""

    static: StaticBuffers | None = None
    """None allocates new tensors for each chunk, which gradients require."""
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Each layer's rotated keys and values, valid until the cache advances."""
    host: HostState = field(default_factory=HostState)
    graphs: GraphCache = field(default_factory=GraphCache)

    @property
    def nbytes(self) -> int:
        """Bytes of the static buffers."""
        return 0 if self.static is None else self.static.keys.nbytes + self.static.values.nbytes

    def invalidate(self) -> None:
        """Discard the rotated keys after the ring has changed."""
        self.layers.clear()

    def reset(self) -> None:
        """Discard all derived data after rows or references were replaced."""
        self.layers.clear()
        self.host.filled_slots = self.host.all_references = None
        self.graphs.clear()
        if self.static is not None:
            self.static.filled_layers.clear()
