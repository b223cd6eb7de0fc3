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
ABSENT = 0
"""Temporal position that marks a reference which a row of a batch does not have."""


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
    history: Literal["pass", "per_step"] = "pass"
    """What the cache keeps: keys of a pass of their own over the finished chunk, or those of each denoising step beside
    each other, which saves that pass and takes a cache for each step (arXiv 2512.04677, 2603.11746)."""
    on_switch: Literal["go_on", "recompute"] = "go_on"
    """When a row's text changes: leave the window as it was made, or encode it anew under the new text first."""
    pipelined: bool = False
    """Backbone on a chunk, refiner on the one before, decoder on the one before that, all at once: the same frames,
    `pipeline_chunks` steps later. False runs them after each other, for the least latency."""
    anchor_refresh_latents: int = 0
    """After so many latent frames what was made then replaces the first reference, once, so that the reference comes
    from the model's own domain (arXiv 2512.04677: adaptive attention sink); 0 means never."""
    colour_guard: float = 0.0
    """Share of a slow colour drift from the character image that is taken back from the frames; 0 means none."""
    colour_guard_s: float = 10.0
    """Time over which the colour is averaged (s): quicker changes, such as light, are left alone."""

    def __post_init__(self) -> None:
        if self.chunk_latents not in (1, 3, 6):
            raise ValueError(f"chunk_latents is {self.chunk_latents}; choose 1, 3 or 6")
        if self.sink_latents < 0 or self.window_latents < self.chunk_latents:
            raise ValueError("sink_latents must not be negative and window_latents at least one chunk")
        falling = sorted(self.backbone_sigmas, reverse=True) == list(self.backbone_sigmas)
        if self.backbone_sigmas[:1] != (1.0,) or not falling:
            raise ValueError(f"backbone_sigmas {self.backbone_sigmas} must fall from 1.0")
        if not 0 <= self.refiner_sigma < 1 or not 0 <= self.colour_guard <= 1:
            raise ValueError("refiner_sigma must lie in [0, 1) and colour_guard in [0, 1]")
        if self.anchor_refresh_latents < 0 or self.colour_guard_s <= 0:
            raise ValueError("anchor_refresh_latents must not be negative, colour_guard_s must be above 0 seconds")

    @property
    def backbone_levels(self) -> tuple[float, ...]:
        """Noise levels of the backbone's history, one for each plane of its cache."""
        return (self.history_sigma,) if self.history == "pass" else self.backbone_sigmas

    @property
    def refiner_levels(self) -> tuple[float, ...]:
        """The same for the refiner, whose history is clean where it has a pass of its own."""
        return (0.0,) if self.history == "pass" else (self.refiner_sigma,)

    @property
    def draws(self) -> int:
        """Chunks of noise that the backbone takes for one of its own; the refiner takes one."""
        return len(self.backbone_sigmas) + (self.history == "pass" and self.history_sigma > 0)

    @property
    def passes(self) -> int:
        """Forward passes that a chunk takes, those that write the history included."""
        own = self.history == "pass"
        return len(self.backbone_sigmas) + own + (1 + own if self.refiner_sigma else 0)

    @property
    def pipeline_chunks(self) -> int:
        """Steps by which the frames come later than their sound."""
        return self.pipelined * (2 if self.refiner_sigma else 1)

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
