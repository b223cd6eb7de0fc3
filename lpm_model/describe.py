"""Cost of a model from its shape alone: parameters, FLOPs, bytes, and a lower bound on the time of a pass.

c width, f feed-forward width, T tokens a latent frame, n audio tokens a latent frame. A matmul of [m, k] and [k, n]
counts 2 m k n FLOPs; norms, rotations and activations are not counted.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lpm_model.character import config_part, read_model_config
from lpm_model.config import LATENT_FPS, ModelConfig, OnlineConfig
from lpm_model.dit import DiffusionTransformer

BYTES = 2
"""Size of a bfloat16 value."""
LATENT_STRIDE_PX = 8
"""Side of one latent cell (pixels)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What one forward pass computes."""

    frames: int
    """Latent frames computed."""
    tokens: int
    """Tokens of one latent frame."""
    past_frames: int = 0
    """Latent frames in the cache, references included."""
    batch: int = 1
    """Rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of a model and of one forward pass."""

    parameters: dict[str, int]
    """Parameters by part."""
    flops: dict[str, int]
    """FLOPs of one forward pass, by part."""
    flops_per_token: float
    """FLOPs of one forward pass per video token."""
    weight_bytes: int
    """Bytes of all weights."""
    kv_bytes_per_latent: int
    """Bytes of the keys and values that one latent frame adds to the cache."""
    kv_bytes: int
    """Bytes of the keys and values that the pass reads from the cache."""
    activation_bytes: int
    """Bytes of the largest tensors alive at once inside one block."""
    training_bytes: int
    """Bytes of a training step with activation checkpointing: all block inputs, and one block's activations twice."""

    @property
    def total_parameters(self) -> int:
        """Parameters of all parts."""
        return sum(self.parameters.values())

    @property
    def total_flops(self) -> int:
        """FLOPs of all parts."""
        return sum(self.flops.values())

    def min_time_s(self, tflops_per_s: float, tb_per_s: float) -> float:
        """Return a lower bound on the time of the pass (s): its matmuls at full rate or one read of weights and cache.

        Raises:
            ValueError: a rate that is not positive.
        """
        if tflops_per_s <= 0 or tb_per_s <= 0:
            raise ValueError(f"rates are {tflops_per_s} TFLOP/s and {tb_per_s} TB/s: give positive ones")
        compute = self.total_flops / (tflops_per_s * 1e12)
        return max(compute, (self.weight_bytes + self.kv_bytes) / (tb_per_s * 1e12))


def tokens_per_latent(size_px: int) -> int:
    """Return the tokens of a latent frame of a square video: one for every 16 x 16 pixels."""
    side = size_px // LATENT_STRIDE_PX
    return side * side // 4


def describe(config: ModelConfig, workload: Workload) -> Cost:
    """Return the cost of a model and a forward pass; builds the model on the meta device, without its memory."""
    with torch.device("meta"):
        dit = DiffusionTransformer(config)
    parameters: dict[str, int] = {}
    for name, value in dit.named_parameters():
        part = _part(name)
        parameters[part] = parameters.get(part, 0) + value.numel()
    c, video = config.width, workload.batch * workload.frames * workload.tokens
    flops = forward_flops(config, workload)
    total = sum(parameters.values())
    kv = config.layers * 2 * workload.tokens * c * BYTES
    # Alive at once: the residual, its norm, and the wider of query-key-value and feed-forward with its activation.
    inside = video * (2 * c + max(4 * c, 2 * config.ffn_width)) * BYTES
    return Cost(
        parameters=parameters,
        flops=flops,
        flops_per_token=sum(flops.values()) / video,
        weight_bytes=total * BYTES,
        kv_bytes_per_latent=kv,
        kv_bytes=kv * workload.past_frames * workload.batch,
        activation_bytes=inside,
        training_bytes=config.layers * video * c * BYTES + 2 * inside,
    )


def read_model_shape(folder: Path, online: OnlineConfig) -> tuple[ModelConfig, OnlineConfig, int]:
    """Read a model folder's config: its shape, how it streams (`online` for a Base LPM), side of its frames (px).

    Raises:
        ValueError: it is not a model folder.
    """
    config = read_model_config(folder)
    streams = config_part(OnlineConfig, config, "online", folder) if "online" in config else online
    return config_part(ModelConfig, config, "model", folder), streams, int(config["size_px"])


def chunk_workload(online: OnlineConfig, size_px: int, references: int = 1) -> Workload:
    """Return the pass that generates one chunk of a live character whose cache is full."""
    return Workload(
        frames=online.chunk_latents, tokens=tokens_per_latent(size_px), past_frames=online.cache_latents + references
    )


def chunk_duration_s(online: OnlineConfig) -> float:
    """Return the duration of a chunk (s), in which a live character must be generated."""
    return online.chunk_latents / LATENT_FPS


def _part(name: str) -> str:
    """Return the part of the model that a parameter belongs to."""
    if ".cross." in name:
        return "audio cross-attention" if ".audio_" in name else "text cross-attention"
    if name.startswith("blocks."):
        return next(
            (part for key, part in (("attention", "self-attention"), ("ffn", "feed-forward")) if f".{key}." in name),
            "modulation and norms",
        )
    first = name.split(".")[0].removeprefix("null_")
    return "audio projectors" if first in ("speak", "listen") else "embeddings and head"


def forward_flops(config: ModelConfig, workload: Workload) -> dict[str, int]:
    """Return the FLOPs of one forward pass by part."""
    c, layers, batch = config.width, config.layers, workload.batch
    video = batch * workload.frames * workload.tokens
    keys = (workload.frames + workload.past_frames) * workload.tokens
    text_inputs, text_keys = batch * config.text_tokens, config.text_tokens
    found = {
        "self-attention": layers * video * (8 * c * c + 4 * c * keys),
        "text cross-attention": layers * (video * (4 * c * c + 4 * c * text_keys) + text_inputs * 4 * c * c),
        "feed-forward": layers * video * 4 * c * config.ffn_width,
        "embeddings and head": video * 16 * c * config.latent_channels
        + batch * workload.frames * (2 * config.time_width * c + 2 * c * c + 12 * c * c)
        + text_inputs * (2 * config.text_width * c + 2 * c * c),
    }
    if config.audio_width:
        latents = batch * (workload.frames + config.context_latents)
        windows = [config.audio.speak_window_latents, config.audio.listen_window_latents]
        each = [(layers + 1) // 2, layers // 2]
        found["audio cross-attention"] = sum(
            count
            * (latents * config.audio_tokens * 4 * c * c + video * (2 * c * c + 4 * c * window * config.audio_tokens))
            for count, window in zip(each, windows, strict=True)
        )
        mixed = 2 * config.audio_mix_width * config.audio_tokens * (config.audio_width + c)
        found["audio projectors"] = 2 * latents * mixed
    if config.uses_residuals and not workload.past_frames:
        found["embeddings and head"] += batch * workload.tokens * 8 * c * config.latent_channels
    return found
