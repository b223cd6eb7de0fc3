"""Settings of captions and references."""

from dataclasses import dataclass
from typing import Literal

from lpm_model.config import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class VlmConfig:
    """A vision-language model behind an OpenAI-compatible chat endpoint (vLLM, SGLang or a vendor's)."""

    url: str = setting("", help="Base address, such as http://vlm:8000/v1; the client posts to <url>/chat/completions.")
    model: str = setting("", help="Name of the model at the endpoint.")
    version: str = setting("", help="Version recorded in the captions; empty = the `model` that the endpoint reports.")
    key_env: str = setting(
        "LPM_VLM_KEY",
        help="Environment variable with the API key; unset or empty = no key is sent.",
        affects=False,
    )
    frames: int = setting(6, help="Frames sent per span.")
    audio: bool = setting(False, help="Also request audio fields, in a separate request without images.")
    timeout_s: float = setting(60.0, help="Time limit for a complete answer.")
    max_answer_bytes: int = setting(262_144, help="Longer answers are rejected.")
    max_failures: int = setting(
        5, help="Number of consecutive failures after which the endpoint is not called again for a source."
    )

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"captions.vlm.url is {self.url!r}: give an http:// or https:// address")
        if not 1 <= self.frames <= 32:
            raise ValueError(f"captions.vlm.frames is {self.frames}: give 1 to 32")
        for name in ("timeout_s", "max_answer_bytes", "max_failures"):
            if getattr(self, name) <= 0:
                raise ValueError(f"captions.vlm.{name} is {getattr(self, name)}: give more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionConfig:
    """Which captioner runs."""

    captioner: Literal["measured", "vlm"] = setting(
        "measured", help="From measured tracks, or by a vision-language model with the measured captions as fallback."
    )
    vlm: VlmConfig = setting(factory=VlmConfig, help="The endpoint.")

    def __post_init__(self) -> None:
        if self.captioner == "vlm" and not (self.vlm.url and self.vlm.model):
            raise ValueError("captions.captioner is vlm: give captions.vlm.url and captions.vlm.model")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """Which reference images of a person accompany a clip, and how far from it they must be."""

    max_views: int = setting(4, help="Maximum number of head views per clip.")
    max_expressions: int = setting(8, help="Maximum number of expressions per clip.")
    guard_s: float = setting(0.5, help="Smallest distance of a reference from the clip's span.")
    candidates: int = setting(3, help="Frames examined per reference; the sharpest with open eyes is used.")
    min_distance: float = setting(
        0.005, help="Perceptual distance (0..1) to every frame of the clip below which an image counts as a copy."
    )

    def __post_init__(self) -> None:
        for name, low, high in (("max_views", 0, 4), ("max_expressions", 0, 8), ("min_distance", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"references.{name} is {getattr(self, name)}: give {low} to {high}")
        if self.guard_s < 0:
            raise ValueError(f"references.guard_s is {self.guard_s}: give 0 or more")
        if self.candidates < 1:
            raise ValueError(f"references.candidates is {self.candidates}: give at least 1")
