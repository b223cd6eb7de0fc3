"""KV cache of the streaming model: references apart, then sink and ring, keys stored before RoPE.

B batch, S + W slots of one latent frame each, T tokens a latent frame, N heads, D head width.
Positions are relative to the window and bounded by S + W + chunk, so that a call may last for ever
(keys cached before RoPE and rotated at use; https://arxiv.org/abs/2309.17453 for sinks).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lpm_model.attention import rotate
from lpm_model.config import OnlineConfig


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Where everything stands for one chunk."""

    slots: int
    """Slots in use by at least one row; the rest is not read."""
    slot_positions: Tensor
    """[B, slots] temporal position of each slot."""
    chunk_positions: Tensor
    """[B, c] temporal positions of the chunk."""
    valid: Tensor | None
    """[B, slots] slots in use per row; None where every row uses all of them."""


@dataclass(slots=True)
class KVCache:
    """Static buffers; one counter a row says how many latent frames were ever written."""

    keys: Tensor
    """[layers, B, S + W, T, N, D], not rotated."""
    values: Tensor
    """[layers, B, S + W, T, N, D]."""
    reference_keys: Tensor
    """[layers, B, R * T, N, D], not rotated."""
    reference_values: Tensor
    """[layers, B, R * T, N, D]."""
    reference_positions: Tensor
    """[R] temporal positions (negative: before latent 0)."""
    written: Tensor
    """[B] latent frames written so far."""
    anchor: Tensor
    """[B, T, C] embedding of the character image, which every token is given; T is 0 without one."""
    sink: int
    """S."""
    ready: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Each layer's past as products want it, kept while the counter stands still."""

    @classmethod
    def empty(
        cls, layers: int, batch: int, tokens: int, heads: int, width: int, online: OnlineConfig, like: Tensor
    ) -> "KVCache":
        """Buffers for `batch` rows, without references."""
        shape = (layers, batch, online.cache_latents, tokens, heads, width)
        none = like.new_zeros(layers, batch, 0, heads, width)
        return cls(
            keys=like.new_zeros(shape),
            values=like.new_zeros(shape),
            reference_keys=none,
            reference_values=none,
            reference_positions=torch.zeros(0, dtype=torch.long, device=like.device),
            written=torch.zeros(batch, dtype=torch.long, device=like.device),
            anchor=like.new_zeros(batch, 0, 0),
            sink=online.sink_latents,
        )

    @property
    def capacity(self) -> int:
        """S + W."""
        return int(self.keys.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.keys, self.values, self.reference_keys, self.reference_values))

    def layout(self, chunk: int) -> CacheLayout:
        """Positions of slots and of the next chunk, per row.

        A ring slot j holds the newest latent frame i >= S with (i - S) mod W = j. Latent i stands at position i until
        the ring is full; afterwards positions are counted so that the window ends at S + W - 1.
        """
        window = self.capacity - self.sink
        slot = torch.arange(self.capacity, device=self.written.device)
        written = self.written[:, None]
        laps = torch.div(written - 1 - slot, window, rounding_mode="floor")
        latent = torch.where(slot < self.sink, slot, slot + window * laps)
        valid = torch.where(slot < self.sink, slot < written, laps >= 0)
        overflow = (written - self.capacity).clamp(min=0)
        positions = torch.where(slot < self.sink, slot, latent - overflow)
        used = min(int(self.written.max()), self.capacity)
        complete = bool((self.written >= used).all())
        chunk_positions = torch.minimum(written, torch.full_like(written, self.capacity)) + torch.arange(
            chunk, device=self.written.device
        )
        return CacheLayout(
            slots=used,
            slot_positions=positions[:, :used],
            chunk_positions=chunk_positions,
            valid=None if complete else valid[:, :used],
        )

    def mask(self, layout: CacheLayout, chunk: int) -> Tensor | None:
        """[B, 1, 1, keys] which keys count (references, slots, the chunk's own), or None where all do."""
        if layout.valid is None:
            return None
        batch, tokens = layout.valid.shape[0], self.keys.shape[3]
        slots = layout.valid.repeat_interleave(tokens, dim=1)
        before, own = slots.new_ones(batch, self.reference_keys.shape[2]), slots.new_ones(batch, chunk * tokens)
        return torch.cat([before, slots, own], dim=1)[:, None, None]

    def past(self, layer: int, slots: int, rotation: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """References and the first `slots` slots: rotated keys [B, N, D, P] and values [B, N, P, D]."""
        if layer not in self.ready:
            keys = torch.cat([self.reference_keys[layer], self.keys[layer][:, :slots].flatten(1, 2)], dim=1)
            values = torch.cat([self.reference_values[layer], self.values[layer][:, :slots].flatten(1, 2)], dim=1)
            turned = rotate(keys, rotation).to(dtype)
            self.ready[layer] = turned.permute(0, 2, 3, 1).contiguous(), values.to(dtype).transpose(1, 2).contiguous()
        return self.ready[layer]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store un-rotated keys and values [B, c * T, N, D] of the next c latent frames (call `advance` once after)."""
        batch, tokens = keys.shape[0], self.keys.shape[3]
        chunk = keys.shape[1] // tokens
        window = self.capacity - self.sink
        latent = self.written[:, None] + torch.arange(chunk, device=self.written.device)
        slot = torch.where(latent < self.sink, latent, self.sink + (latent - self.sink) % window)
        rows = torch.arange(batch, device=slot.device)[:, None].expand_as(slot)
        self.keys[layer][rows, slot] = keys.detach().unflatten(1, (chunk, tokens)).to(self.keys.dtype)
        self.values[layer][rows, slot] = values.detach().unflatten(1, (chunk, tokens)).to(self.values.dtype)

    def advance(self, chunk: int) -> None:
        """Count the written latent frames; the only place where the counter moves."""
        self.ready.clear()
        self.written = self.written + chunk

    def take(self, mask: Tensor, other: "KVCache") -> None:
        """Replace the rows where mask [B] is True by those of another cache of the same shape."""
        for name in ("keys", "values", "reference_keys", "reference_values"):
            own, new = getattr(self, name), getattr(other, name)
            own[:, mask] = new[:, mask]
        self.anchor = torch.where(mask[:, None, None], other.anchor, self.anchor)
        self.written = torch.where(mask, other.written, self.written)
        self.ready.clear()
