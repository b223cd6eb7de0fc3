"""Settings of captions and references."""

from dataclasses import dataclass
from typing import Literal

from lpm_model.config import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class VlmConfig:
    """A vision-language model behind an endpoint that speaks the OpenAI chat protocol (vLLM, SGLang, a vendor's)."""

    url: str = setting("", help="Base address, such as http://vlm:8000/v1; the client posts to <url>/chat/completions.")
    model: str = setting("", help="Name of the model at the endpoint.")
    version: str = setting(
        "", help="Its version, as the captions will state it; empty = what the endpoint answers as `model`."
    )
    key_env: str = setting(
        "LPM_VLM_KEY", help="Environment variable that holds the key; unset or empty = none is sent.", affects=False
    )
    frames: int = setting(6, help="Pictures sent for a span.")
    audio: bool = setting(False, help="Also ask about the sound, in a request of its own that shows no picture.")
    timeout_s: float = setting(60.0, help="Longest wait for a whole answer.")
    max_answer_bytes: int = setting(262_144, help="Longer answers are not read.")
    max_failures: int = setting(
        5, help="After so many failures in a row the endpoint is not asked again for this source."
    )

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"captions.vlm.url is {self.url!r}: give an http:// or https:// address")
        if not 1 <= self.frames <= 32 or self.timeout_s <= 0 or self.max_answer_bytes < 1 or self.max_failures < 1:
            raise ValueError("captions.vlm wants frames in 1..32 and timeout_s, max_answer_bytes, max_failures above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionConfig:
    """Who writes the captions."""

    captioner: Literal["measured", "vlm"] = setting(
        "measured", help="From measured tracks, or by a vision-language model, which falls back to them where it fails."
    )
    vlm: VlmConfig = setting(factory=VlmConfig, help="The endpoint.")

    def __post_init__(self) -> None:
        if self.captioner == "vlm" and not (self.vlm.url and self.vlm.model):
            raise ValueError("captions.captioner is vlm: give captions.vlm.url and captions.vlm.model")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """Which pictures of a person stand beside a clip, and how far from it they have to be."""

    max_views: int = setting(4, help="Most head views a clip.")
    max_expressions: int = setting(8, help="Most expressions a clip.")
    guard_s: float = setting(0.5, help="References lie at least so far from the clip's span.")
    candidates: int = setting(3, help="Frames looked at for each reference; the sharpest, most open one is taken.")
    min_distance: float = setting(
        0.005, help="Perceptual distance (0..1) to every frame of the clip below which a picture is a copy of it."
    )

    def __post_init__(self) -> None:
        if not 0 <= self.max_views <= 4 or not 0 <= self.max_expressions <= 8 or self.candidates < 1:
            raise ValueError("references wants max_views in 0..4, max_expressions in 0..8 and candidates of at least 1")
        if self.guard_s < 0 or not 0 <= self.min_distance <= 1:
            raise ValueError("references wants guard_s >= 0 and min_distance in 0..1")
