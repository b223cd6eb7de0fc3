"""FP8 (e4m3) matmuls, about twice the rate of bfloat16 where the hardware has them.

Weights are scaled per output row once, inputs per token in each call, outputs are bfloat16
(https://arxiv.org/abs/2209.05433). For inference only: the original weights are discarded.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = torch.finfo(FLOAT8).max
MULTIPLE = 16
"""Both sides of a matrix must be a multiple of this."""


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a matrix [rows, columns] to FP8, with float32 scales [rows, 1]: x = values * scales."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / FLOAT8_MAX
    return (x.float() / scale).to(FLOAT8), scale


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer, by an FP8 matmul if its weights were quantized; x [..., in] to [..., out]."""
    if layer.weight.dtype != FLOAT8:
        return functional.linear(x, layer.weight, layer.bias)
    values, scale = quantize(x.flatten(0, -2))
    # torch.nn.functional.scaled_mm computes the same but cannot be compiled yet.
    out: Tensor = torch._scaled_mm(
        values, layer.weight.t(), scale_a=scale, scale_b=layer.get_buffer("scale").t(), bias=layer.bias,
        out_dtype=x.dtype,
    )  # fmt: skip
    return out.unflatten(0, x.shape[:-1])


class Float8Linear(nn.Linear):
    """A linear layer with FP8 weights and a scale for each output row."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(self, x)


def to_float8(networks: Iterable[nn.Module]) -> None:
    """Quantize the linear layers inside the blocks of some networks to FP8, in place; shared weights stay shared.

    Args:
        networks: transformers with `blocks`, in bfloat16.

    Raises:
        ValueError: weights of another type, or a matrix whose sides are not multiples of 16.
    """
    done: dict[int, tuple[nn.Parameter, Tensor]] = {}
    alive = []  # a weight's id is unique only while the weight is alive
    for network in networks:
        blocks: nn.Module = network.blocks  # type: ignore[assignment]
        for path, layer in list(blocks.named_modules()):
            if not isinstance(layer, nn.Linear):
                continue
            weight = layer.weight
            if weight.dtype != torch.bfloat16 or any(side % MULTIPLE for side in weight.shape):
                raise ValueError(
                    f"blocks.{path} is {tuple(weight.shape)} of {weight.dtype}: FP8 matmuls need bfloat16 weights "
                    f"whose sides are multiples of {MULTIPLE}; run without float8"
                )
            if id(weight) not in done:
                values, scale = quantize(weight.detach())
                done[id(weight)] = nn.Parameter(values, requires_grad=False), scale
                alive.append(weight)
            _replace(blocks, path, layer, *done[id(weight)])


def _replace(blocks: nn.Module, path: str, layer: nn.Linear, weight: nn.Parameter, scale: Tensor) -> None:
    """Give a layer its FP8 weights; a plain one changes its class, one with adapters calls `linear` already."""
    if type(layer) is nn.Linear:
        new = Float8Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        new.bias = layer.bias
        parent, _, own = path.rpartition(".")
        setattr(blocks.get_submodule(parent), own, new)
        layer = new
    layer.weight = weight
    layer.register_buffer("scale", scale)
