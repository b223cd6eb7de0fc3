"""Conversion of Wan 2.1's transformer weights, in the layout of diffusers, to ours and back.

Tensors are read one at a time and written in shards, so that a model is never in memory as a whole, and keep their
types, so that a round trip of text-to-video weights gives the same bits. Image-to-video weights lose their CLIP branch
and the mask and image channels of their first layer: the first frame is a clean token here.

Weight names of Wan: https://github.com/huggingface/diffusers, WanTransformer3DModel.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from lpm_model.character import read_model_config
from lpm_model.config import ModelConfig, from_mapping, to_mapping
from lpm_model.weight_shards import SHARD_BYTES, STEM, Shards, write_shards

log = logging.getLogger(__name__)

WAN_STEM = "diffusion_pytorch_model"
_TOP = {
    "patch": "patch_embedding",
    "time.0": "condition_embedder.time_embedder.linear_1",
    "time.2": "condition_embedder.time_embedder.linear_2",
    "time_modulation": "condition_embedder.time_proj",
    "text.0": "condition_embedder.text_embedder.linear_1",
    "text.2": "condition_embedder.text_embedder.linear_2",
    "head": "proj_out",
}
_BLOCK = {
    "attention.out": "attn1.to_out.0",
    "cross_norm": "norm2",
    "cross.query": "attn2.to_q",
    "cross.key": "attn2.to_k",
    "cross.value": "attn2.to_v",
    "cross.out": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_NORMS = {
    "attention.norm_q": "attn1.norm_q",
    "attention.norm_k": "attn1.norm_k",
    "cross.norm_q": "attn2.norm_q",
    "cross.norm_k": "attn2.norm_k",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_DROPPED = ("condition_embedder.image_embedder.", ".attn2.add_k_proj.", ".attn2.add_v_proj.", ".attn2.norm_added_")


def model_config(wan: dict[str, Any]) -> ModelConfig:
    """Convert a diffusers config to ours.

    Raises:
        ValueError: an unsupported variant.
    """
    wanted = {"patch_size": [1, 2, 2], "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"}
    for key, value in wanted.items():
        found = list(wan[key]) if isinstance(wan.get(key), (list, tuple)) else wan.get(key)
        if found != value:
            raise ValueError(f"config.json has {key} = {found!r}; only {value!r} (Wan 2.1) can be imported")
    return ModelConfig(
        latent_channels=wan["out_channels"],
        width=wan["num_attention_heads"] * wan["attention_head_dim"],
        heads=wan["num_attention_heads"],
        layers=wan["num_layers"],
        ffn_width=wan["ffn_dim"],
        time_width=wan["freq_dim"],
        text_width=wan["text_dim"],
        text_tokens=512,
        audio_width=0,
        residual_gain=0.0,
        predicts="velocity",
        eps=wan["eps"],
    )


def import_wan(source: Path, folder: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Convert a folder of diffusers' WanTransformer3DModel into a folder of our transformer.

    Args:
        source: config.json and diffusion_pytorch_model*.safetensors.
        folder: receives config.json and model*.safetensors.
        shard_bytes: size of one written file.

    Returns:
        Names of the dropped weights; empty for text-to-video weights.

    Raises:
        ValueError: the folder holds no such model, or an unsupported variant.
    """
    wan = read_model_config(source, "give the `transformer` folder of a Wan 2.1 model")
    config = model_config(wan)
    with Shards(source, WAN_STEM) as shards:
        dropped = sorted(name for name in shards.files if any(part in f".{name}" for part in _DROPPED))
        extra = wan["in_channels"] - config.latent_channels
        if extra:
            dropped.insert(0, f"patch_embedding.weight: the last {extra} of {wan['in_channels']} input channels")
        write_shards(folder, STEM, _to_ours(shards, config), shard_bytes)
    (folder / "config.json").write_text(json.dumps({"model": to_mapping(config), "wan": wan}, indent=2) + "\n")
    for name in dropped:
        log.info("dropped %s", name)
    return dropped


def export_wan(source: Path, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Convert an imported folder back to one that diffusers loads; image-to-video weights become text-to-video.

    Raises:
        ValueError: a folder that `import_wan` did not write.
    """
    described = read_model_config(source, "give a folder that `lpm import-wan` wrote")
    if "wan" not in described:
        raise ValueError(f"{source} was not imported from Wan: give a folder that `lpm import-wan` wrote")
    config = from_mapping(ModelConfig, described["model"])
    wan = {**described["wan"], "in_channels": config.latent_channels, "image_dim": None, "added_kv_proj_dim": None}
    with Shards(source, STEM) as shards:
        write_shards(folder, WAN_STEM, _to_wan(shards, config), shard_bytes)
    (folder / "config.json").write_text(json.dumps(wan, indent=2) + "\n")


def _pairs(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield (our name, Wan's name) of every tensor that is the same on both sides."""
    for our, theirs in _TOP.items():
        for part in ("weight", "bias"):
            if our not in ("patch", "head"):
                yield f"{our}.{part}", f"{theirs}.{part}"
    yield "patch.bias", "patch_embedding.bias"
    for index in range(config.layers):
        for our, theirs in _BLOCK.items():
            for part in ("weight", "bias"):
                yield f"blocks.{index}.{our}.{part}", f"blocks.{index}.{theirs}.{part}"
        for our, theirs in _NORMS.items():
            yield f"blocks.{index}.{our}.weight", f"blocks.{index}.{theirs}.weight"


def _to_ours(shards: Shards, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    c, channels = config.width, config.latent_channels
    for our, theirs in _pairs(config):
        yield our, shards.read(theirs)
    yield "patch.weight", shards.read("patch_embedding.weight")[:, :channels].reshape(c, 4 * channels).clone()
    for part in ("weight", "bias"):
        yield f"head.{part}", _channels_first(shards.read(f"proj_out.{part}"), channels)
        for index in range(config.layers):
            three = [shards.read(f"blocks.{index}.{name}.{part}") for name in _QKV]
            yield f"blocks.{index}.attention.qkv.{part}", torch.cat(three)
    yield "head_modulation", shards.read("scale_shift_table")[0].clone()
    for index in range(config.layers):
        yield f"blocks.{index}.modulation", shards.read(f"blocks.{index}.scale_shift_table")[0].clone()
    yield "null_text", torch.zeros(1, 1, c, dtype=shards.read("proj_out.weight").dtype)


def _to_wan(shards: Shards, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    c, channels = config.width, config.latent_channels
    for our, theirs in _pairs(config):
        yield theirs, shards.read(our)
    yield "patch_embedding.weight", shards.read("patch.weight").reshape(c, channels, 1, 2, 2)
    for part in ("weight", "bias"):
        yield f"proj_out.{part}", _channels_last(shards.read(f"head.{part}"), channels)
        for index in range(config.layers):
            three = shards.read(f"blocks.{index}.attention.qkv.{part}").chunk(3)
            for name, tensor in zip(_QKV, three, strict=True):
                yield f"blocks.{index}.{name}.{part}", tensor.clone()
    yield "scale_shift_table", shards.read("head_modulation")[None]
    for index in range(config.layers):
        yield f"blocks.{index}.scale_shift_table", shards.read(f"blocks.{index}.modulation")[None]


def _channels_first(rows: Tensor, channels: int) -> Tensor:
    """Reorder the rows of the last layer from Wan's (row, column, channel) to our (channel, row, column)."""
    return rearrange(rows, "(y x c) ... -> (c y x) ...", y=2, x=2, c=channels).contiguous()


def _channels_last(rows: Tensor, channels: int) -> Tensor:
    """Undo `_channels_first`."""
    return rearrange(rows, "(c y x) ... -> (y x c) ...", y=2, x=2, c=channels).contiguous()
