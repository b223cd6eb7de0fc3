"""KV cache of the streaming model: references, attention sink and a ring of recent latents, keys stored before RoPE.

B batch, S sink slots, W ring slots, one latent frame each, T tokens per latent frame, N heads, D head width, c latent
frames of a chunk, R references.
Rows may have different references and positions. Every buffer is allocated once and keeps its address.
Positions are relative to the window and bounded by S + W + c, so that a call can run indefinitely
(keys cached before RoPE and rotated at use; https://arxiv.org/abs/2309.17453 for sinks).
lpm_model.attention_plan derives the keys and values that attention reads.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from lpm_model.config import ABSENT, OnlineConfig
from lpm_model.prepared_keys import PreparedKeys, StaticBuffers


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Temporal positions of the slots and of the next chunk."""

    slots: int
    """Number of slots in use by at least one row; the others are not read."""
    slot_positions: Tensor
    """[B, slots] temporal position of each slot."""
    chunk_positions: Tensor
    """[B, c] temporal positions of the chunk."""
    valid: Tensor | None
    """[B, slots] True where a row uses a slot; None if every row uses all of them."""


@dataclass(slots=True)
class KVCache:
    """The history of B rows; one counter per row holds the total number of latent frames written."""

    keys: Tensor
    """[levels * layers, B, S + W, T, N, D], not rotated; one level, or one for each denoising step."""
    values: Tensor
    """[levels * layers, B, S + W, T, N, D]."""
    reference_keys: Tensor
    """[layers, B, R * T, N, D], not rotated."""
    reference_values: Tensor
    """[layers, B, R * T, N, D]."""
    reference_positions: Tensor
    """[B, R] temporal positions (negative: before latent 0; ABSENT where a row has fewer)."""
    written: Tensor
    """[B] latent frames written so far."""
    image_embedding: Tensor
    """[B, T, C] embedding of the reference image, which is added to every token; T is 0 in models that have none."""
    latents: Tensor
    """[B, W, channels, h, w] the last clean latents, latent i at i mod W, for `window_of`; W is 0 where unused."""
    sink: int
    """S."""
    first_layer: int = 0
    """First layer of the level that is read and written."""
    prepared: PreparedKeys = field(default_factory=PreparedKeys)
    """Derived from the other fields; shared by all levels."""

    @classmethod
    def empty(
        cls, layers: int, batch: int, tokens: int, heads: int, width: int, online: OnlineConfig, like: Tensor,
        levels: int = 1,
    ) -> "KVCache":  # fmt: skip
        """Allocate a cache for `batch` rows, without references.

        Args:
            layers: blocks of the transformer.
            batch: B.
            tokens: T.
            heads: N.
            width: D.
            online: sink and window sizes.
            like: a tensor of the cache's type and device.
            levels: parallel histories, one for each noise level.
        """
        shape = (levels * layers, batch, online.cache_latents, tokens, heads, width)
        none = like.new_zeros(layers, batch, 0, heads, width)
        return cls(
            keys=like.new_zeros(shape),
            values=like.new_zeros(shape),
            reference_keys=none,
            reference_values=none,
            reference_positions=torch.zeros(batch, 0, dtype=torch.long, device=like.device),
            written=torch.zeros(batch, dtype=torch.long, device=like.device),
            image_embedding=like.new_zeros(batch, 0, 0),
            latents=like.new_zeros(batch, 0, 0, 0, 0),
            sink=online.sink_latents,
        )

    @property
    def capacity(self) -> int:
        """S + W."""
        return int(self.keys.shape[2])

    @property
    def window(self) -> int:
        """W."""
        return self.capacity - self.sink

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.keys.shape[3])

    @property
    def levels(self) -> int:
        """Number of parallel histories, one for each noise level."""
        return int(self.keys.shape[0] // self.reference_keys.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes held, static buffers included."""
        held = (self.keys, self.values, self.reference_keys, self.reference_values, self.latents)
        return sum(t.nbytes for t in held) + self.prepared.nbytes

    @property
    def capturable(self) -> bool:
        """Whether all further chunks have the same shapes and addresses, so that CUDA graphs can be captured.

        True once every slot of every row is in use and the static buffers hold references and sink.
        """
        static = self.prepared.static
        return static is not None and len(static.filled_layers) == self.keys.shape[0]

    def level(self, index: int) -> "KVCache":
        """Return a view that reads and writes the history of one noise level."""
        return replace(self, first_layer=index * self.reference_keys.shape[0])

    def allocate_static(self, chunk_latents: int) -> None:
        """Allocate static buffers for chunks of that many latent frames; call it after the references are written."""
        self.prepared.static = StaticBuffers.allocate(chunk_latents, self.keys, self.reference_keys.shape[2])
        self.prepared.invalidate()

    def layout(self, chunk: int) -> CacheLayout:
        """Return the positions of the slots and of the next `chunk` latent frames, per row.

        A ring slot j holds the newest latent frame i >= S with (i - S) mod W = j. Latent i has position i until
        the ring is full; afterwards positions are shifted so that the window ends at S + W - 1.
        """
        slot = torch.arange(self.capacity, device=self.written.device)
        written = self.written[:, None]
        laps = torch.div(written - 1 - slot, self.window, rounding_mode="floor")
        latent = torch.where(slot < self.sink, slot, slot + self.window * laps)
        valid = torch.where(slot < self.sink, slot < written, laps >= 0)
        overflow = (written - self.capacity).clamp(min=0)
        positions = torch.where(slot < self.sink, slot, latent - overflow)
        filled = self._filled_slots()
        used = max(filled)
        chunk_positions = torch.minimum(written, torch.full_like(written, self.capacity)) + torch.arange(
            chunk, device=self.written.device
        )
        return CacheLayout(
            slots=used,
            slot_positions=positions[:, :used],
            chunk_positions=chunk_positions,
            valid=None if min(filled) == used else valid[:, :used],
        )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store one layer of the next c latent frames; call `advance` once after all layers.

        Args:
            layer: index of the transformer block.
            keys: [B, c * T, N, D], not rotated.
            values: [B, c * T, N, D].
        """
        rows, slots = self._evict_oldest(keys.shape[1] // self.tokens)
        for buffer, new in ((self.keys, keys), (self.values, values)):
            frames = new.detach().unflatten(1, (-1, self.tokens)).to(buffer.dtype)
            buffer[self.first_layer + layer][rows, slots] = frames

    def _evict_oldest(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the rows and slots [B, count] to which the next latent frames are written.

        This is where entries are evicted: the first S latent frames fill the sink's slots for good; each
        later one takes the next slot of the ring, which, once the ring is full, is that of its oldest latent frame.
        Overwriting the slot evicts it; nothing else is moved.
        """
        latent = self.written[:, None] + torch.arange(count, device=self.written.device)
        slot = torch.where(latent < self.sink, latent, self.sink + (latent - self.sink) % self.window)
        return self._rows(count), slot

    def _rows(self, count: int) -> Tensor:
        """Row numbers [B, count], to index with slots of the same shape."""
        rows = torch.arange(self.written.shape[0], device=self.written.device)
        return rows[:, None].expand(-1, count)

    def store_latents(self, clean: Tensor) -> None:
        """Store the next c clean latent frames [B, channels, c, h, w], if `window_of` will need them."""
        if self.latents.shape[1]:
            count = clean.shape[2]
            latent = self.written[:, None] + torch.arange(count, device=self.written.device)
            frames = clean.detach().transpose(1, 2).to(self.latents.dtype)
            self.latents[self._rows(count), latent % self.window] = frames

    def advance(self, chunk: int) -> None:
        """Add `chunk` written latent frames to the counter, which nothing else changes."""
        self.prepared.invalidate()
        self.prepared.host.filled_slots = [min(slots + chunk, self.capacity) for slots in self._filled_slots()]
        self.written += chunk

    def window_of(self, row: int) -> tuple["KVCache", Tensor, int]:
        """Return what is needed to re-encode one row's window.

        Returns:
            A cache of that row without its window, the window's latents [1, channels, k, h, w], and the index of the
            first of them; k is 0 if the window is empty.
        """
        written = int(self.written[row])
        first = max(self.sink, written - self.window)
        indices = torch.arange(first, max(first, written), device=self.written.device)
        one = slice(row, row + 1)
        fresh = replace(
            self,
            keys=self.keys[:, one].clone(),
            values=self.values[:, one].clone(),
            reference_keys=self.reference_keys[:, one].clone(),
            reference_values=self.reference_values[:, one].clone(),
            reference_positions=self.reference_positions[one],
            image_embedding=self.image_embedding[one],
            latents=self.latents[:1, :0],
            written=torch.full_like(self.written[:1], min(self.sink, written)),
            prepared=PreparedKeys(),
        )
        return fresh, self.latents[row, indices % self.window].transpose(0, 1)[None], first

    def replace_window(self, row: int, fresh: "KVCache", first: int) -> None:
        """Replace a row's window with the one written to `window_of`'s cache; it starts at latent frame `first`."""
        count = int(fresh.written) - self.sink
        slots = self.sink + (torch.arange(count, device=self.written.device) + first - self.sink) % self.window
        for name in ("keys", "values"):
            getattr(self, name)[:, row, slots] = getattr(fresh, name)[:, 0, self.sink : self.sink + count]
        self.prepared.invalidate()

    def replace_rows(self, mask: Tensor, other: "KVCache") -> None:
        """Replace the rows where mask [B] is True with those of another cache; the numbers of references may differ."""
        if self.reference_keys.shape[2] != other.reference_keys.shape[2]:
            most = max(self.reference_positions.shape[1], other.reference_positions.shape[1])
            other = replace(other, prepared=PreparedKeys())
            self._pad_references(most)
            other._pad_references(most)
        for name in ("keys", "values"):
            getattr(self, name)[:, mask] = getattr(other, name)[:, mask]
        for name in ("image_embedding", "latents", "reference_positions", "written"):
            getattr(self, name)[mask] = getattr(other, name)[mask]
        self.replace_references(mask, other)

    def replace_references(self, mask: Tensor, other: "KVCache") -> None:
        """Replace the references of the rows where mask [B] is True with the same number from another cache."""
        for name in ("reference_keys", "reference_values"):
            getattr(self, name)[:, mask] = getattr(other, name)[:, mask]
        self.prepared.reset()

    def _filled_slots(self) -> list[int]:
        """Slots in use by each row; read from the device once, and again after rows were replaced."""
        host = self.prepared.host
        if host.filled_slots is None:
            host.filled_slots = self.written.clamp(max=self.capacity).tolist()
        return host.filled_slots

    def _pad_references(self, references: int) -> None:
        """Pad with absent references to the given number."""
        more = references - self.reference_positions.shape[1]
        self.reference_positions = functional.pad(self.reference_positions, (0, more), value=ABSENT)
        for name in ("reference_keys", "reference_values"):
            padded = functional.pad(getattr(self, name), (0, 0, 0, 0, 0, more * self.tokens))
            setattr(self, name, padded)
        if self.prepared.static is not None and more:
            self.allocate_static(self.prepared.static.chunk_latents)
