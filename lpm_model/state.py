"""The whole state of streaming sessions as one typed value, and its file.

B rows (sessions that step together), P latent frames of audio context, n audio tokens a latent frame.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpm_model.autoencoder.api import DecoderState
from lpm_model.cache import KVCache
from lpm_model.character import Character
from lpm_model.colour_drift import ColourState
from lpm_model.dit import Conditions

DERIVED = ("prepared",)
"""Fields of a cache that are computed from the others."""


@dataclass(frozen=True, slots=True)
class ChunkOutput:
    """A chunk from the backbone that waits for the refiner."""

    clean: Tensor
    """[B, channels, c, h, w]."""
    conditions: Conditions
    """Conditions of the chunk, with the preceding audio features as context."""
    changed_rows: tuple[int, ...]
    """Rows whose prompt changed at the beginning of the chunk."""


@dataclass(slots=True)
class OnlineState:
    """Everything that B sessions carry from step to step: history, audio context, decoder features, randomness."""

    cache: KVCache
    """The backbone's history."""
    refiner_cache: KVCache | None
    """The refiner's history; None without a refiner."""
    character: Character
    """The character of each row."""
    speak: Tensor
    """[B, P, n, audio_width] features of the latent frames before the chunk, of the character's own audio."""
    listen: Tensor
    """[B, P, n, audio_width] the same of the partner's audio."""
    speak_tail: Tensor
    """[B, past_samples] samples before the chunk, of the character's own audio."""
    listen_tail: Tensor
    """[B, past_samples] the same of the partner's audio."""
    decoder: DecoderState
    colour: ColourState
    generators: tuple[torch.Generator, ...]
    """Generators of the backbone's noise, one per row, so that a row does not depend on the others."""
    refiner_generators: tuple[torch.Generator, ...]
    """Of the refiner's noise."""
    texts: tuple[str, ...]
    """The prompt of each row in the previous chunk."""
    awaiting_refiner: ChunkOutput | None = None
    """Pipelined: the chunk that the refiner takes next."""
    awaiting_decoder: Tensor | None = None
    """Pipelined: latents [B, channels, c, h, w] that the decoder takes next."""

    @property
    def position(self) -> Tensor:
        """[B] latent frames so far, the reference image included."""
        return self.cache.written

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        caches = [self.cache] if self.refiner_cache is None else [self.cache, self.refiner_cache]
        return sum(cache.nbytes for cache in caches) + sum(
            t.nbytes for name, t in flatten(self).items() if "cache." not in name
        )

    def to(self, device: torch.device | str) -> "OnlineState":
        """Return the same state on another device."""
        moved: OnlineState = build(OnlineState, {name: t.to(device) for name, t in flatten(self).items()})
        for old, new in ((self.cache, moved.cache), (self.refiner_cache, moved.refiner_cache)):
            if old is not None and new is not None and old.prepared.static is not None:
                new.allocate_static(old.prepared.static.chunk_latents)
        return moved


def flatten(value: Any, name: str = "") -> dict[str, Tensor]:
    """Return the tensors of a nested value by dotted name; None and derived fields are skipped."""
    if value is None:
        return {}
    if isinstance(value, Tensor):
        return {name: value.detach()}
    if isinstance(value, torch.Generator):
        return {name: value.get_state()}
    if isinstance(value, str):
        return {name: torch.tensor(list(value.encode()), dtype=torch.uint8)}
    if isinstance(value, int):
        return {name: torch.tensor(value)}
    if isinstance(value, tuple):
        parts = {str(index): item for index, item in enumerate(value)}
        found = {f"{name}.length": torch.tensor(len(value))}
    else:
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in DERIVED}
        found = {}
    for part, item in parts.items():
        found |= flatten(item, f"{name}.{part}" if name else part)
    return found


def build(hint: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Build a value of a type from the tensors that `flatten` returned."""
    if typing.get_origin(hint) is types.UnionType:
        present = any(key == name or key.startswith(f"{name}.") for key in tensors)
        return build(typing.get_args(hint)[0], tensors, name) if present else None
    if hint is Tensor:
        return tensors[name]
    if hint is torch.Generator:
        generator = torch.Generator()
        generator.set_state(tensors[name].cpu())
        return generator
    if hint is str:
        return bytes(tensors[name].tolist()).decode()
    if hint is int:
        return int(tensors[name])
    if typing.get_origin(hint) is tuple:
        count, item = int(tensors[f"{name}.length"]), typing.get_args(hint)[0]
        return tuple(build(item, tensors, f"{name}.{index}") for index in range(count))
    hints = typing.get_type_hints(hint)
    fields = [f.name for f in dataclasses.fields(hint) if f.name not in DERIVED]
    return hint(**{f: build(hints[f], tensors, f"{name}.{f}" if name else f) for f in fields})


def save_state(state: OnlineState, path: Path, about: dict[str, str]) -> None:
    """Write a state as safetensors.

    Args:
        state: it is not changed.
        path: file to write; a half-written file never has this name.
        about: properties of the model that a loaded state must match.
    """
    from safetensors.torch import save_file

    tensors = {name: t.clone(memory_format=torch.contiguous_format) for name, t in flatten(state).items()}
    half = path.with_name(f"{path.name}.part")
    save_file(tensors, half, about)
    half.replace(path)


def load_state(path: Path, about: dict[str, str], chunk: int) -> OnlineState:
    """Load a state that resumes exactly where it was saved.

    Args:
        path: from `save_state`.
        about: properties of this model.
        chunk: latent frames of its chunks.

    Raises:
        ValueError: the file is missing, damaged, or of another model.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path} is missing: give the file that save_state wrote")
    try:
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): start a new session") from error
    for name, value in about.items():
        if found.get(name) != value:
            raise ValueError(
                f"{path} is a state of another model ({name} {found.get(name)}, here {value}): "
                "load the model that saved it, or start a new session"
            )
    state: OnlineState = build(OnlineState, tensors)
    for cache in (state.cache, state.refiner_cache):
        if cache is not None:
            cache.allocate_static(chunk)
    return state
