"""Typed configuration: frozen dataclasses, a strict loader, and every derived number as a property."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar, overload

FRAMES_PER_LATENT = 4
"""Video frames per latent frame (latent 0, the character image, covers one)."""
VIDEO_FPS = 24
"""Frame rate of everything inside the platform."""
AUDIO_RATE = 24_000
"""Sample rate (Hz) of everything inside the platform: mono PCM16."""
SAMPLES_PER_FRAME = AUDIO_RATE // VIDEO_FPS
"""1000: audio samples per video frame."""
SAMPLES_PER_LATENT = SAMPLES_PER_FRAME * FRAMES_PER_LATENT
"""4000: audio samples per latent frame."""
LATENT_FPS = VIDEO_FPS // FRAMES_PER_LATENT

T = TypeVar("T")


@overload
def setting(default: T, *, help: str, affects: bool | str = True, is_path: bool = False) -> T: ...
@overload
def setting(*, factory: Callable[[], T], help: str, affects: bool | str = True, is_path: bool = False) -> T: ...
def setting(
    default: Any = dataclasses.MISSING,
    *,
    factory: Any = dataclasses.MISSING,
    help: str,
    affects: bool | str = True,
    is_path: bool = False,
) -> Any:
    """Declare a field of a config dataclass, with the text that `lpm config`, `--help` and the pages show for it.

    Args:
        default: the default value.
        factory: makes the default value, in place of `default`.
        help: what the setting does, and its unit.
        affects: False for a setting that does not change the output of a step, which caches then ignore; the name of a
            part of a step if only that part depends on the setting, which the caches of other parts then ignore.
        is_path: True for a setting that names files or folders to read, whose content the result depends on too.
    """
    metadata = {"help": help, "affects": affects, "is_path": is_path}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def help_texts(cls: type[Any]) -> dict[str, str]:
    """Return the help text of every setting of a config dataclass, by field name."""
    return {item.name: item.metadata.get("help", "") for item in dataclasses.fields(cls)}


def result_settings(config: Any, *, ignore: Collection[str] = ()) -> dict[str, Any]:
    """Return the plain nested values of a config without the settings that do not change the result.

    Args:
        config: a config dataclass.
        ignore: also leave out the settings that affect only these parts of a step (see `setting`).
    """
    kept = {}
    for item in dataclasses.fields(config):
        affects = item.metadata.get("affects", True)
        if affects is False or affects in ignore:
            continue
        value = getattr(config, item.name)
        kept[item.name] = result_settings(value, ignore=ignore) if dataclasses.is_dataclass(value) else value
    return kept


def path_settings(config: Any, where: str = "") -> dict[str, tuple[str, ...]]:
    """Return the paths that the settings of a config name, by dotted key (see `setting`); empty ones are left out."""
    found: dict[str, tuple[str, ...]] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            found |= path_settings(value, f"{where}{item.name}.")
        elif item.metadata.get("is_path") and value:
            found[f"{where}{item.name}"] = (value,) if isinstance(value, str) else tuple(value)
    return found


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Build a (nested) config dataclass from plain values; reject unknown keys and values that do not fit.

    Args:
        cls: the dataclass to build.
        values: a mapping such as a parsed YAML or JSON document.
        where: dotted prefix for messages, such as "curate."; every message names the full key.

    Raises:
        ValueError: an unknown key (the nearest valid one is named), a missing one, or a value that does not fit.
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
        raise ValueError(f"config lacks {', '.join(where + name for name in missing)}: add the value(s)")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(_with_full_key(str(error), where, fields)) from error


def _with_full_key(message: str, where: str, fields: Collection[str]) -> str:
    """Prefix a message of a dataclass's own checks with its path, without repeating keys that the message names.

    `workers is 0` becomes `curate.workers is 0`; `bench.seconds is 1`, raised by `evaluate.bench`, becomes
    `evaluate.bench.seconds is 1`; a message that starts with no key becomes `curate: ...`.
    """
    path = where.rstrip(".").split(".") if where else []
    for start in range(len(path)):
        known = ".".join(path[start:])
        if message.startswith(known) and message[len(known) : len(known) + 1] in (".", ":", " "):
            return ".".join([*path[:start], message])
    if re.split(r"[^A-Za-z0-9_]", message, maxsplit=1)[0] in fields:
        return where + message
    return f"{where[:-1]}: {message}" if where else message


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
        if not isinstance(value, Mapping):
            raise ValueError(f"config {name} must be a mapping, not {value!r}")
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
    """Return the plain nested values of a config dataclass, ready for JSON or YAML."""
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
"""Temporal position of a missing reference in a row that has fewer than the batch."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AudioConfig:
    """Audio encoder and its context; the same offline and streaming."""

    encoder: str = setting("mel", help="mel (no weights) or wav2vec2.")
    past_ms: int = setting(100, help="Audio before a span that its features may depend on.")
    lookahead_ms: int = setting(100, help="Audio after a span that its features may depend on (0 to 200).")
    mels: int = setting(48, help="Mel bands.")
    speak_window_latents: int = setting(
        2, help="Latent frames of the character's own audio that a video token attends to: its own and earlier ones."
    )
    listen_window_latents: int = setting(
        12, help="The same for the partner's audio; longer, because reactions come late."
    )

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
    """Shape of the Diffusion Transformer. Sizes default to small ones; techniques that only tiny uses are off."""

    latent_channels: int = setting(16, help="Channels of a video latent.")
    width: int = setting(256, help="Token width.")
    layers: int = setting(8, help="Transformer blocks.")
    heads: int = setting(2, help="Attention heads.")
    ffn_width: int = setting(768, help="Hidden width of the feed-forward.")
    time_width: int = setting(256, help="Width of the sinusoidal timestep embedding.")
    text_encoder: str = setting("hash", help="hash (no weights) or umt5.")
    text_width: int = setting(64, help="Width of a text token from the text encoder.")
    text_tokens: int = setting(16, help="Text tokens.")
    audio_width: int = setting(
        960,
        help="Width of an audio token, that of the audio encoder; 0 removes both audio branches from the graph.",
    )
    audio_mix_width: int = setting(
        256, help="Hidden width of the projectors that mix the audio tokens of one latent frame."
    )
    audio: AudioConfig = setting(AudioConfig(), help="Audio context.")
    residual_gain: float = setting(
        0.0,
        help="Latents are modelled as this many times their residual to the reference-image latent; 0 models absolute "
        "latents.",
    )
    predicts: Literal["velocity", "clean"] = setting(
        "velocity",
        help="Output of the last layer: velocities, as in Wan 2.1, or clean latents, from which velocities follow.",
    )
    qk_norm: bool = setting(True, help="RMS norm of queries and keys over the whole width, as in Wan 2.1.")
    eps: float = setting(1e-6, help="Epsilon of every norm.")

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % (2 * self.heads):
            fitting = [n for n in range(1, self.width // 2 + 1) if self.width % (2 * n) == 0]
            near = sorted(sorted(fitting, key=lambda n: abs(n - self.heads))[:4])
            raise ValueError(
                f"heads is {self.heads}: width {self.width} divided by it must be an even whole number; "
                f"choose {', '.join(map(str, near))}"
            )

    @property
    def uses_residuals(self) -> bool:
        """Whether latents are residuals to the reference-image latent; its embedding is then added to every token."""
        return self.residual_gain != 0

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
        """Latent frames of audio before the first video latent that the forward pass needs."""
        return max(self.audio.speak_window_latents, self.audio.listen_window_latents) - 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OnlineConfig:
    """How Online LPM streams: chunk, cache, steps."""

    chunk_latents: int = setting(1, help="Latent frames denoised together.")
    sink_latents: int = setting(
        1, help="First latent frames, never evicted from the cache (latent 0, the reference image, is one)."
    )
    window_latents: int = setting(6, help="Most recent latent frames in the cache (ring).")
    backbone_sigmas: tuple[float, ...] = setting(
        (1.0, 0.6), help="Noise levels at which the backbone runs, one forward pass each (paper: 2 NFE)."
    )
    refiner_sigma: float = setting(
        0.0, help="Noise level at which the refiner takes over; 0 means there is no refiner."
    )
    history_sigma: float = setting(
        0.25, help="Noise level of the history in the backbone's cache (paper section 4.1: noisy history)."
    )
    history: Literal["pass", "per_step"] = setting(
        "pass",
        help="Keys in the cache: those of a separate pass over the finished chunk, or those of each denoising step, "
        "which saves that pass and needs a cache for each step (arXiv 2512.04677, 2603.11746).",
    )
    on_prompt_change: Literal["keep", "recompute"] = setting(
        "keep",
        help="When a row's prompt changes: keep the cached window, or recompute it under the new prompt first "
        "(KV recache, arXiv 2509.22622).",
    )
    pipelined: bool = setting(
        False,
        help="Run backbone, refiner and decoder in parallel on successive chunks: the same frames, one or two steps "
        "later. False runs them in sequence, for the least latency.",
    )
    reference_refresh_latents: int = setting(
        0,
        help="Latent frames after which the latest generated frame replaces the first reference, once, so that the "
        "reference is in the model's own domain (arXiv 2512.04677: adaptive attention sink); 0 is never.",
    )
    colour_correction: float = setting(
        0.0,
        help="Fraction of a slow colour drift from the reference image that is removed from the frames; 0 is none.",
    )
    colour_correction_time_s: float = setting(
        10.0, help="Time constant of the averaged colour (s): quicker changes, such as light, are kept."
    )

    def __post_init__(self) -> None:
        if self.chunk_latents not in (1, 3, 6):
            raise ValueError(f"chunk_latents is {self.chunk_latents}; choose 1, 3 or 6")
        if self.sink_latents < 0 or self.window_latents < self.chunk_latents:
            raise ValueError(
                f"sink_latents is {self.sink_latents} and window_latents {self.window_latents}: the first must not be "
                f"negative, the second at least one chunk ({self.chunk_latents})"
            )
        falling = sorted(self.backbone_sigmas, reverse=True) == list(self.backbone_sigmas)
        if self.backbone_sigmas[:1] != (1.0,) or not falling:
            raise ValueError(f"backbone_sigmas is {self.backbone_sigmas}: noise levels must fall from 1.0")
        if not 0 <= self.refiner_sigma < 1 or not 0 <= self.colour_correction <= 1:
            raise ValueError(
                f"refiner_sigma is {self.refiner_sigma} and colour_correction {self.colour_correction}: "
                "choose them in [0, 1) and [0, 1]"
            )
        if self.reference_refresh_latents < 0 or self.colour_correction_time_s <= 0:
            raise ValueError(
                f"reference_refresh_latents is {self.reference_refresh_latents}, which must not be negative, and "
                f"colour_correction_time_s {self.colour_correction_time_s}, which must be above 0 seconds"
            )

    @property
    def backbone_levels(self) -> tuple[float, ...]:
        """Noise levels of the backbone's history, one for each level of its cache."""
        return (self.history_sigma,) if self.history == "pass" else self.backbone_sigmas

    @property
    def refiner_levels(self) -> tuple[float, ...]:
        """The same for the refiner, whose history is clean if it has a separate pass."""
        return (0.0,) if self.history == "pass" else (self.refiner_sigma,)

    @property
    def noise_draws(self) -> int:
        """Noise tensors that the backbone draws per chunk; the refiner draws one."""
        return len(self.backbone_sigmas) + (self.history == "pass" and self.history_sigma > 0)

    @property
    def passes(self) -> int:
        """Forward passes of a chunk, including those that write the history."""
        own = self.history == "pass"
        return len(self.backbone_sigmas) + own + (1 + own if self.refiner_sigma else 0)

    @property
    def pipeline_chunks(self) -> int:
        """Steps by which frames lag behind their audio."""
        return self.pipelined * (2 if self.refiner_sigma else 1)

    @property
    def cache_latents(self) -> int:
        """Latent frames in the cache when it is full."""
        return self.sink_latents + self.window_latents


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Low-rank adaptation of the matrices inside the blocks."""

    rank: int = setting(0, help="Rank of the update; 0 trains the full matrices.")
    alpha: float = setting(16.0, help="The update is scaled by alpha / rank.")
    targets: tuple[str, ...] = setting(
        ("attention", "cross", "ffn"),
        help="Regular expressions: linear layers of the blocks whose name matches one of them are adapted.",
    )

    def __post_init__(self) -> None:
        if self.rank < 0 or (self.rank and not self.targets):
            raise ValueError(f"lora.rank is {self.rank} on {len(self.targets)} targets: use 0, or a rank and targets")

    @property
    def gain(self) -> float:
        """Scale of the update (alpha / rank)."""
        return self.alpha / self.rank if self.rank else 0.0
