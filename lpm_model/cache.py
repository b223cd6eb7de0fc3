"""KV cache of the streaming model: references apart, then sink and ring, keys stored before RoPE.

B batch, S + W slots of one latent frame each, T tokens a latent frame, N heads, D head width, P keys of the past.
Rows may have different references and stand at different positions. Every buffer is made once and stays where it is.
Positions are relative to the window and bounded by S + W + chunk, so that a call may last for ever
(keys cached before RoPE and rotated at use; https://arxiv.org/abs/2309.17453 for sinks).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lpm_model.attention import attend, attend_with_past, plain, rotate
from lpm_model.config import ABSENT, OnlineConfig
from lpm_model.cuda_graphs import Recordings


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
class Room:
    """Static buffers for the past as products want it: rotated, and with a place for the chunk's own keys behind it."""

    chunk: int
    """Latent frames of a chunk."""
    by_products: bool
    """Laid out for two matrix products, or for the fused kernel."""
    keys: Tensor
    """[planes * layers, B, N, D, P] for products, [planes * layers, B, N, P + c * T, D] for the kernel."""
    values: Tensor
    """[planes * layers, B, N, P (+ c * T), D]."""
    settled: set[int] = field(default_factory=set)
    """Layers whose references and sink are in place; they keep their positions for ever."""


@dataclass(slots=True)
class Known:
    """What the host knows of the rows, so that no pass waits for a device; None is looked up when it is asked for."""

    filled: list[int] | None = None
    """Slots in use of each row."""
    complete: bool | None = None
    """Whether every row has all references."""


@dataclass(slots=True)
class KVCache:
    """Static buffers; one counter a row says how many latent frames were ever written."""

    keys: Tensor
    """[planes * layers, B, S + W, T, N, D], not rotated; one plane, or one for each denoising step."""
    values: Tensor
    """[planes * layers, B, S + W, T, N, D]."""
    reference_keys: Tensor
    """[layers, B, R * T, N, D], not rotated."""
    reference_values: Tensor
    """[layers, B, R * T, N, D]."""
    reference_positions: Tensor
    """[B, R] temporal positions (negative: before latent 0; ABSENT where a row has fewer)."""
    written: Tensor
    """[B] latent frames written so far."""
    anchor: Tensor
    """[B, T, C] embedding of the character image, which every token is given; T is 0 without one."""
    latents: Tensor
    """[B, W, channels, h, w] the last clean latents, latent i at i mod W, for `recall`; W is 0 where none are kept."""
    sink: int
    """S."""
    offset: int = 0
    """First layer of the plane that is read and written."""
    room: Room | None = None
    """None makes buffers anew for each chunk, as gradients need it."""
    ready: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Each layer's past as products want it, kept while the counter stands still."""
    turn: Callable[[Tensor, Tensor], Tensor] = rotate
    """Turns the past's keys."""
    known: Known = field(default_factory=Known)
    """One for all planes."""
    recordings: Recordings = field(default_factory=Recordings)
    """Of chunks over these buffers."""

    @classmethod
    def empty(
        cls, layers: int, batch: int, tokens: int, heads: int, width: int, online: OnlineConfig, like: Tensor,
        planes: int = 1,
    ) -> "KVCache":  # fmt: skip
        """Buffers for `batch` rows, without references."""
        shape = (planes * layers, batch, online.cache_latents, tokens, heads, width)
        none = like.new_zeros(layers, batch, 0, heads, width)
        return cls(
            keys=like.new_zeros(shape),
            values=like.new_zeros(shape),
            reference_keys=none,
            reference_values=none,
            reference_positions=torch.zeros(batch, 0, dtype=torch.long, device=like.device),
            written=torch.zeros(batch, dtype=torch.long, device=like.device),
            anchor=like.new_zeros(batch, 0, 0),
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
    def planes(self) -> int:
        """Histories kept beside each other."""
        return int(self.keys.shape[0] // self.reference_keys.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = [self.keys, self.values, self.reference_keys, self.reference_values, self.latents]
        held += [] if self.room is None else [self.room.keys, self.room.values]
        return sum(t.nbytes for t in held)

    def plane(self, index: int) -> "KVCache":
        """The same cache, of which one plane is read and written."""
        return replace(self, offset=index * self.reference_keys.shape[0])

    @property
    def steady(self) -> bool:
        """Every slot of every row is in use and its buffers are settled: from now on chunks differ in values alone."""
        return self.room is not None and len(self.room.settled) == self.keys.shape[0]

    def make_room(self, chunk: int) -> None:
        """Make the static buffers for chunks of that many latent frames; call it once the references are in."""
        layers, batch, slots, tokens, heads, width = self.keys.shape
        past, own = self.reference_keys.shape[2] + slots * tokens, chunk * tokens
        by_products = plain(own, past + own, self.keys.device)
        length = past if by_products else past + own
        values = self.values.new_zeros(layers, batch, heads, length, width)
        keys = self.keys.new_zeros(layers, batch, heads, width, length) if by_products else torch.zeros_like(values)
        self.room = Room(chunk, by_products, keys, values)
        self.ready.clear()

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
        filled = self._filled()
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

    def mask(self, layout: CacheLayout, chunk: int) -> Tensor | None:
        """[B, 1, 1, keys] which keys count (references, slots, the chunk's own), or None where all do."""
        present = self.reference_positions != ABSENT
        if self.known.complete is None:
            self.known.complete = bool(present.all())
        if layout.valid is None and self.known.complete:
            return None
        batch = present.shape[0]
        valid = present.new_ones(batch, layout.slots) if layout.valid is None else layout.valid
        seen = torch.cat([present, valid, present.new_ones(batch, chunk)], dim=1)
        return seen.repeat_interleave(self.tokens, dim=1)[:, None, None]

    def attend(
        self, layer: int, layout: CacheLayout, rotation: Tensor, own: tuple[Tensor, Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        """Attention of a chunk over the references, the slots in use and itself.

        Args:
            layer: of the model.
            layout: from `layout`.
            rotation: [B, P, D] of the past's keys, references first, from `rope3d`.
            own: the chunk's queries and keys, rotated, and values, each [B, L, N, D].
            mask: [B, 1, 1, P + L] from `mask`.

        Returns:
            [B, L, N * D].
        """
        query, key, value = own
        past = rotation.shape[1]
        by_products = plain(query.shape[1], past + key.shape[1], query.device)
        keys, values = self.past(layer, layout, rotation, value.dtype, by_products=by_products)
        if by_products:
            return attend_with_past(query, keys, values, key, value, mask)
        if keys.shape[2] > past:  # static buffers with a place for the chunk's own
            keys[:, :, past:], values[:, :, past:] = key.transpose(1, 2), value.transpose(1, 2)
        else:
            keys = torch.cat([keys, key.transpose(1, 2)], dim=2)
            values = torch.cat([values, value.transpose(1, 2)], dim=2)
        return attend(query, keys.transpose(1, 2), values.transpose(1, 2), mask)

    def past(
        self, layer: int, layout: CacheLayout, rotation: Tensor, dtype: torch.dtype, *, by_products: bool
    ) -> tuple[Tensor, Tensor]:
        """References and the slots in use, as products want them.

        Returns:
            Rotated keys [B, N, D, P] for products, else [B, N, P, D], and values [B, N, P, D]. For the kernel the
            static buffers end in a place for the chunk's own.
        """
        place, room = self.offset + layer, self.room
        if place not in self.ready:
            static = room is not None and layout.slots == self.capacity
            if room is not None and static and (room.by_products, room.keys.dtype) == (by_products, dtype):
                self.ready[place] = self._refill(room, layer, rotation, settles=layout.valid is None)
            else:
                keys, values = self._joined(layer, layout.slots)
                turned = self.turn(keys, rotation).to(dtype).permute(0, 2, *((3, 1) if by_products else (1, 3)))
                self.ready[place] = turned.contiguous(), values.to(dtype).transpose(1, 2).contiguous()
        return self.ready[place]

    def _joined(self, layer: int, slots: int) -> tuple[Tensor, Tensor]:
        """Keys, not rotated, and values [B, P, N, D] of the references and the first slots."""
        place = self.offset + layer
        keys = [self.reference_keys[layer], self.keys[place][:, :slots].flatten(1, 2)]
        values = [self.reference_values[layer], self.values[place][:, :slots].flatten(1, 2)]
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)

    def _refill(self, room: Room, layer: int, rotation: Tensor, *, settles: bool) -> tuple[Tensor, Tensor]:
        """The static buffers of a layer, brought up to date; references and sink stand still once they are there."""
        place, past = self.offset + layer, rotation.shape[1]
        if place in room.settled:
            begin = self.reference_keys.shape[2] + self.sink * self.tokens
            keys, values = (x[place][:, self.sink :].flatten(1, 2) for x in (self.keys, self.values))
        else:
            begin, (keys, values) = 0, self._joined(layer, self.capacity)
        by_token = room.keys[place].transpose(2, 3) if room.by_products else room.keys[place]
        by_token[:, :, begin:past] = self.turn(keys, rotation[:, begin:]).transpose(1, 2)
        room.values[place][:, :, begin:past] = values.transpose(1, 2)
        if settles:
            room.settled.add(place)
        return room.keys[place], room.values[place]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store un-rotated keys and values [B, c * T, N, D] of the next c latent frames (call `advance` once after)."""
        rows, slot = self._slots(keys.shape[1] // self.tokens)
        place = self.offset + layer
        for buffer, new in ((self.keys, keys), (self.values, values)):
            buffer[place][rows, slot] = new.detach().unflatten(1, (-1, self.tokens)).to(buffer.dtype)

    def keep(self, clean: Tensor) -> None:
        """Store the next c clean latent frames [B, channels, c, h, w] too, where `recall` is to have them."""
        if self.latents.shape[1]:
            rows, _ = self._slots(clean.shape[2])
            latent = self.written[:, None] + torch.arange(clean.shape[2], device=self.written.device)
            self.latents[rows, latent % self.window] = clean.detach().transpose(1, 2).to(self.latents.dtype)

    def advance(self, chunk: int) -> None:
        """Count the written latent frames; the only place where the counter moves."""
        self.ready.clear()
        self.known.filled = [min(slots + chunk, self.capacity) for slots in self._filled()]
        self.written += chunk

    def recall(self, row: int) -> tuple["KVCache", Tensor, int]:
        """What it takes to encode one row's window anew.

        Returns:
            A cache of that row without its window, the window's latents [1, channels, k, h, w], and the number of the
            first of them; k is 0 where there is none.
        """
        written = int(self.written[row])
        first = max(self.sink, written - self.window)
        numbers = torch.arange(first, max(first, written), device=self.written.device)
        names = ("keys", "values", "reference_keys", "reference_values")
        alone = {name: getattr(self, name)[:, row : row + 1].clone() for name in names}
        kept = {name: getattr(self, name)[row : row + 1] for name in ("reference_positions", "anchor")}
        own: dict[str, Any] = {"room": None, "ready": {}, "known": Known(), "recordings": Recordings()}
        fresh = replace(self, **alone, **kept, **own, latents=self.latents[:1, :0])
        fresh.written = torch.full_like(self.written[:1], min(self.sink, written))
        return fresh, self.latents[row, numbers % self.window].transpose(0, 1)[None], first

    def put_back(self, row: int, fresh: "KVCache", first: int) -> None:
        """Take the window that `recall`'s cache has got meanwhile; its first latent frame is number `first`."""
        count = int(fresh.written) - self.sink
        slots = self.sink + (torch.arange(count, device=self.written.device) + first - self.sink) % self.window
        for name in ("keys", "values"):
            getattr(self, name)[:, row, slots] = getattr(fresh, name)[:, 0, self.sink : self.sink + count]
        self.ready.clear()

    def take(self, mask: Tensor, other: "KVCache") -> None:
        """Replace the rows where mask [B] is True by those of another cache; the numbers of references may differ."""
        if self.reference_keys.shape[2] != other.reference_keys.shape[2]:
            most = max(self.reference_positions.shape[1], other.reference_positions.shape[1])
            other = replace(other)
            self._pad(most)
            other._pad(most)
        for name in ("keys", "values"):
            getattr(self, name)[:, mask] = getattr(other, name)[:, mask]
        for name in ("anchor", "latents", "reference_positions", "written"):
            getattr(self, name)[mask] = getattr(other, name)[mask]
        self.take_references(mask, other)

    def take_references(self, mask: Tensor, other: "KVCache") -> None:
        """Replace the references of the rows where mask [B] is True by as many of another cache."""
        for name in ("reference_keys", "reference_values"):
            getattr(self, name)[:, mask] = getattr(other, name)[:, mask]
        self.ready.clear()
        self.known.filled = self.known.complete = None
        self.recordings.made.clear()
        if self.room is not None:
            self.room.settled.clear()

    def _filled(self) -> list[int]:
        """Slots in use of each row; the device is asked once, and again after rows were replaced."""
        if self.known.filled is None:
            self.known.filled = self.written.clamp(max=self.capacity).tolist()
        return self.known.filled

    def _pad(self, references: int) -> None:
        """Make place for more references."""
        more = references - self.reference_positions.shape[1]
        self.reference_positions = functional.pad(self.reference_positions, (0, more), value=ABSENT)
        for name in ("reference_keys", "reference_values"):
            padded = functional.pad(getattr(self, name), (0, 0, 0, 0, 0, more * self.tokens))
            setattr(self, name, padded)
        if self.room is not None and more:
            self.make_room(self.room.chunk)

    def _slots(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Rows and slots [B, c] of the next latent frames."""
        latent = self.written[:, None] + torch.arange(chunk, device=self.written.device)
        slot = torch.where(latent < self.sink, latent, self.sink + (latent - self.sink) % self.window)
        return torch.arange(slot.shape[0], device=slot.device)[:, None].expand_as(slot), slot
