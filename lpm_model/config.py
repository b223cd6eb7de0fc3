"""Typed configuration: frozen dataclasses, a strict loader, and every derived number as a property."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

FRAMES_PER_LATENT = 4
"""Video frames that one latent frame owns (latent 0, the character image, owns one)."""
VIDEO_FPS = 24
"""Frame rate of everything inside the platform."""
AUDIO_RATE = 24_000
"""Sample rate (Hz) of everything inside the platform: mono PCM16."""
SAMPLES_PER_FRAME = AUDIO_RATE // VIDEO_FPS
"""1000: audio samples that one video frame owns."""
SAMPLES_PER_LATENT = SAMPLES_PER_FRAME * FRAMES_PER_LATENT
"""4000: audio samples that one latent frame owns."""
LATENT_FPS = VIDEO_FPS // FRAMES_PER_LATENT

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Build a (nested) config dataclass from plain values and refuse what it does not know.

    Args:
        cls: the dataclass to build.
        values: a mapping such as a parsed YAML or JSON document.
        where: dotted prefix for messages.

    Raises:
        ValueError: an unknown key (the nearest valid one is named), a missing one, or a value of a wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.4)
            hint = f"did you mean {where}{near[0]}?" if near else f"valid keys: {', '.join(sorted(fields))}"
            raise ValueError(f"unknown config key {name}: {hint}")
        arguments[str(key)] = _convert(hints[key], value, name)
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"config {where or cls.__name__} lacks {', '.join(missing)}: add the value(s)")
    return cls(**arguments)


def _convert(hint: Any, value: Any, name: str) -> Any:
    """Check one value against its annotation; lists become tuples, mappings become dataclasses."""
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_mapping(typing.cast(type, hint), value, where=f"{name}.")
        if isinstance(value, typing.cast(type, hint)):
            return value
        raise ValueError(f"config {name} must be a mapping, not {value!r}")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, name)
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ValueError(f"config {name} must be a list, not {value!r}")
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"config {name} needs {len(kinds)} values, not {len(value)}")
        return tuple(_convert(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        return {k: _convert(args[1], v, f"{name}.{k}") for k, v in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"config {name} is {value!r}; choose one of {', '.join(map(str, args))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise ValueError(f"config {name} must be {hint.__name__}, not {value!r}")
    return value


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain nested values of a config dataclass, ready for JSON or YAML."""
    return dataclasses.asdict(config)
