"""Matrix products in 8-bit floating point (e4m3), about twice the rate of bfloat16 where the hardware has them.

Weights are scaled by output row once, inputs by token as they come, sums are bfloat16 (https://arxiv.org/abs/2209.05433).
For inference only: what is scaled away does not come back.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import ScalingType

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
MULTIPLE = 16
"""Both sides of a matrix must be a multiple of this."""


def scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [rows, columns] in 8 bits and its float32 scales [rows, 1]: x = values * scales."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (x.float() / scale).to(FLOAT8), scale


def product(layer: nn.Linear, x: Tensor) -> Tensor:
    """What a linear layer gives, in the precision that its weights have been brought to."""
    if layer.weight.dtype != FLOAT8:
        return functional.linear(x, layer.weight, layer.bias)
    values, scale = scaled(x.flatten(0, -2))
    out = functional.scaled_mm(
        values, layer.weight.t(), scale, ScalingType.RowWise, layer.get_buffer("scale").t(), ScalingType.RowWise,
        bias=layer.bias, output_dtype=x.dtype,
    )  # fmt: skip
    return out.unflatten(0, x.shape[:-1])


class Float8Linear(nn.Linear):
    """A linear layer whose weights are 8 bits wide, with a scale for each output."""

    def forward(self, x: Tensor) -> Tensor:
        return product(self, x)


def to_float8(networks: Iterable[nn.Module]) -> None:
    """Bring the matrices inside the blocks of some networks to 8 bits, in place; weights that they share stay shared.

    Args:
        networks: transformers with `blocks`, in bfloat16.

    Raises:
        ValueError: weights of another type, or a matrix whose sides do not fit.
    """
    done: dict[int, tuple[nn.Parameter, Tensor]] = {}
    kept = []  # a weight's id is only its own while the weight lives
    for network in networks:
        blocks: nn.Module = network.blocks  # type: ignore[assignment]
        for path, layer in list(blocks.named_modules()):
            if not isinstance(layer, nn.Linear):
                continue
            weight = layer.weight
            if weight.dtype != torch.bfloat16 or any(side % MULTIPLE for side in weight.shape):
                raise ValueError(
                    f"blocks.{path} is {tuple(weight.shape)} of {weight.dtype}: 8-bit products take bfloat16 weights "
                    f"whose sides are multiples of {MULTIPLE}; run without fp8"
                )
            if id(weight) not in done:
                values, scale = scaled(weight.detach())
                done[id(weight)] = nn.Parameter(values, requires_grad=False), scale
                kept.append(weight)
            _replace(blocks, path, layer, *done[id(weight)])


def _replace(blocks: nn.Module, path: str, layer: nn.Linear, weight: nn.Parameter, scale: Tensor) -> None:
    """Give a layer its new weights; a plain one becomes another class, one with adapters asks `product` already."""
    if type(layer) is nn.Linear:
        new = Float8Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        new.bias = layer.bias
        parent, _, own = path.rpartition(".")
        setattr(blocks.get_submodule(parent), own, new)
        layer = new
    layer.weight = weight
    layer.register_buffer("scale", scale)
