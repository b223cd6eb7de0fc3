"""Typed configuration: frozen dataclasses, a strict loader, and every derived number as a property."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

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
        return tuple(
            _convert(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
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


STATES = {"idle": 0, "speak": 1, "listen": 2, "discard": 255}
"""What a person does in a frame, as state tracks code it."""
REFERENCE_KINDS: dict[str, int] = {
    "global": 1,
    **{f"view_{i}": 2 + i for i in range(4)},
    **{f"expression_{i}": 6 + i for i in range(8)},
}
"""Temporal RoPE offset of each reference subtype, counted back from latent 0 (paper section 3.3: segment-wise RoPE)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AudioConfig:
    """What the audio encoder sees and gives; the same offline and streaming."""

    encoder: str = "mel"
    """mel (no weights) or wav2vec2."""
    past_ms: int = 100
    """Audio before a span that its features may depend on."""
    lookahead_ms: int = 100
    """Audio after a span that its features may depend on (0 to 200)."""
    mels: int = 48
    """Mel bands."""
    speak_window_latents: int = 2
    """Latent frames of the character's own voice that a video token attends to: its own and those before."""
    listen_window_latents: int = 12
    """The same for the other's voice; longer, since reactions come late."""

    def __post_init__(self) -> None:
        if not 0 <= self.lookahead_ms <= 200:
            raise ValueError(f"lookahead_ms is {self.lookahead_ms}; choose 0 to 200")

    @property
    def past_samples(self) -> int:
        """Samples before a span that must be supplied."""
        return self.past_ms * AUDIO_RATE // 1000

    @property
    def lookahead_samples(self) -> int:
        """Samples after a span that must be supplied."""
        return self.lookahead_ms * AUDIO_RATE // 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of the Diffusion Transformer; defaults are the tiny profile."""

    latent_channels: int = 16
    """Channels of a video latent."""
    width: int = 256
    """Token width."""
    layers: int = 8
    """Transformer blocks."""
    heads: int = 2
    """Attention heads."""
    ffn_width: int = 768
    """Hidden width of the feed-forward."""
    time_width: int = 256
    """Width of the sinusoidal timestep embedding."""
    text_encoder: str = "hash"
    """hash (no weights) or umt5."""
    text_width: int = 64
    """Width of a text token from the text encoder."""
    text_tokens: int = 16
    """Text tokens fed."""
    audio_width: int = 960
    """Width of an audio token, as the audio encoder gives it; 0 removes both audio branches from the graph."""
    audio_mix_width: int = 256
    """Hidden width of the projectors that mix the audio tokens of one latent frame."""
    audio: AudioConfig = AudioConfig()
    """Audio context."""
    anchor_gain: float = 2.0
    """Latents are modelled as this many times their difference to the character image; 0 models them as they are."""
    predicts: Literal["velocity", "clean"] = "clean"
    """What the last layer gives: velocities, as Wan 2.1, or clean latents, from which velocities follow."""
    qk_norm: bool = True
    """RMS norm of queries and keys over the whole width, as Wan 2.1 has it."""
    eps: float = 1e-6
    """Epsilon of every norm."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % (2 * self.heads):
            fitting = [n for n in range(1, self.width // 2 + 1) if self.width % (2 * n) == 0]
            near = sorted(sorted(fitting, key=lambda n: abs(n - self.heads))[:4])
            raise ValueError(
                f"heads is {self.heads}: width {self.width} divided by it must be an even whole number; "
                f"choose {', '.join(map(str, near))}"
            )

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def rope_split(self) -> tuple[int, int, int]:
        """Channels of a head that rotate with time, row and column (Wan 2.1's split)."""
        side = 2 * (self.head_width // 6)
        return self.head_width - 2 * side, side, side

    @property
    def audio_tokens(self) -> int:
        """Audio tokens per latent frame: one per video frame."""
        return FRAMES_PER_LATENT

    @property
    def context_latents(self) -> int:
        """Latent frames of audio before the first video latent that the forward pass wants."""
        return max(self.audio.speak_window_latents, self.audio.listen_window_latents) - 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OnlineConfig:
    """How Online LPM streams: chunk, cache, steps."""

    chunk_latents: int = 1
    """Latent frames denoised together."""
    sink_latents: int = 1
    """First latent frames that stay in the cache for ever (latent 0, the character image, is one)."""
    window_latents: int = 6
    """Last latent frames kept in the cache."""
    backbone_sigmas: tuple[float, ...] = (1.0, 0.6)
    """Noise levels at which the backbone runs, one forward each (paper: 2 NFE)."""
    refiner_sigma: float = 0.0
    """Noise level at which the refiner takes over; 0 means there is no refiner."""
    history_sigma: float = 0.25
    """Noise put on the history before it enters the backbone's cache (paper section 4.1: noisy history)."""

    def __post_init__(self) -> None:
        if self.chunk_latents not in (1, 3, 6):
            raise ValueError(f"chunk_latents is {self.chunk_latents}; choose 1, 3 or 6")
        if self.sink_latents < 1 or self.window_latents < self.chunk_latents:
            raise ValueError("sink_latents must be at least 1 and window_latents at least one chunk")
        if self.backbone_sigmas[0] != 1.0 or sorted(self.backbone_sigmas, reverse=True) != list(self.backbone_sigmas):
            raise ValueError(f"backbone_sigmas {self.backbone_sigmas} must fall from 1.0")

    @property
    def cache_latents(self) -> int:
        """Latent frames in the cache when it is full."""
        return self.sink_latents + self.window_latents


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Low-rank adaptation of the matrices inside the blocks."""

    rank: int = 0
    """Rank of the update; 0 trains the whole matrices."""
    alpha: float = 16.0
    """The update counts alpha / rank times."""
    targets: tuple[str, ...] = ("attention", "cross", "ffn")
    """Regular expressions: matrices of the blocks whose name holds one of them are adapted."""

    def __post_init__(self) -> None:
        if self.rank < 0 or (self.rank and not self.targets):
            raise ValueError(f"lora.rank is {self.rank} on {len(self.targets)} targets: use 0, or a rank and targets")

    @property
    def gain(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / self.rank if self.rank else 0.0
