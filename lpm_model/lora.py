"""Low-rank adapters on a frozen model (LoRA, https://arxiv.org/abs/2106.09685).

One base may carry several named adapters, at most one of them active, so that several models share one base.
y = W x + (alpha / rank) U D x, with D [rank, in] random and U [out, rank] zero at the start.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lpm_model.config import Lora
from lpm_model.float8 import linear

Network = TypeVar("Network", bound=nn.Module)


class Adapter(nn.Module):
    """Low-rank update of one matrix."""

    def __init__(self, base: nn.Linear, lora: Lora) -> None:
        super().__init__()
        self.gain = lora.gain
        self.down = nn.Parameter(base.weight.new_empty(lora.rank, base.in_features))
        self.up = nn.Parameter(base.weight.new_zeros(base.out_features, lora.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * functional.linear(functional.linear(x, self.down), self.up)


class AdaptedLinear(nn.Linear):
    """A linear layer that shares the frozen weights of another and has named adapters, at most one of them active."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.adapters = nn.ModuleDict()
        self.active: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = linear(self, x)
        return out if self.active is None else out + self.adapters[self.active](x)


def adapted_layers(model: nn.Module) -> list[AdaptedLinear]:
    """Return every layer that has adapters."""
    return [module for module in model.modules() if isinstance(module, AdaptedLinear)]


def add_adapter(model: nn.Module, name: str, lora: Lora) -> list[nn.Parameter]:
    """Freeze a model, add a named adapter and activate it.

    Args:
        model: a transformer with `blocks`.
        name: of the adapter; letters, digits and `_`.
        lora: rank, gain and targets.

    Returns:
        The adapter's weights, the only trainable ones of the model.

    Raises:
        ValueError: a target that matches no linear layer of the blocks.
    """
    blocks: nn.Module = model.blocks  # type: ignore[assignment]
    layers = {path: module for path, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    for target in lora.targets:
        if not any(re.search(target, path) for path in layers):
            raise ValueError(f"lora.targets: {target!r} matches no linear layer; one is {next(iter(layers))!r}")
    model.requires_grad_(False)
    trainable: list[nn.Parameter] = []
    for path, layer in layers.items():
        if not any(re.search(target, path) for target in lora.targets):
            continue
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(layer)
            parent, _, own = path.rpartition(".")
            setattr(blocks.get_submodule(parent), own, layer)
        layer.adapters[name] = Adapter(layer, lora)
        trainable += layer.adapters[name].parameters()
    activate_adapter(model, name)
    return trainable


def activate_adapter(model: nn.Module, name: str | None) -> None:
    """Activate an adapter; None runs the base alone."""
    for layer in adapted_layers(model):
        layer.active = name if name is not None and name in layer.adapters else None


@contextmanager
def adapter_active(model: nn.Module, name: str | None) -> Iterator[None]:
    """Activate an adapter inside a context."""
    before = [(layer, layer.active) for layer in adapted_layers(model)]
    activate_adapter(model, name)
    try:
        yield
    finally:
        for layer, other in before:
            layer.active = other


def merge_adapter(weights: Mapping[str, Tensor], name: str, lora: Lora) -> dict[str, Tensor]:
    """Merge one adapter into the base's weights and drop the others.

    Args:
        weights: state dict of the adapted model.
        name: of the adapter.
        lora: as given to `add_adapter`.

    Returns:
        State dict of a plain model that computes the same.
    """
    plain = {key: value for key, value in weights.items() if ".adapters." not in key}
    for key in list(plain):
        layer = key.removesuffix(".weight")
        if f"{layer}.adapters.{name}.up" in weights:
            down, up = (weights[f"{layer}.adapters.{name}.{side}"] for side in ("down", "up"))
            plain[key] = (plain[key].float() + lora.gain * up.float() @ down.float()).to(plain[key].dtype)
    return plain


def adapter_difference(weights: Mapping[str, Tensor], of: str, over: str, lora: Lora) -> dict[str, Tensor]:
    """Express one adapter relative to the model into which another one is merged: y = (W + a U D) x, of twice the rank.

    Args:
        weights: state dict of a model with both adapters.
        of: name of the adapter to express, and of the result.
        over: name of the adapter that is merged into the base.
        lora: as given to `add_adapter`.

    Returns:
        The adapter's weights by name, with its gain multiplied in (see `difference_lora`).
    """
    update: dict[str, Tensor] = {}
    for key in weights:
        layer = key.removesuffix(f".adapters.{of}.up")
        if layer == key:
            continue
        (down, up), (other_down, other_up) = (
            [weights[f"{layer}.adapters.{name}.{side}"] for side in ("down", "up")] for name in (of, over)
        )
        update[f"{layer}.adapters.{of}.down"] = torch.cat([down, other_down])
        update[key] = lora.gain * torch.cat([up, -other_up], dim=1)
    return update


def difference_lora(lora: Lora) -> Lora:
    """Return the config of an adapter that `adapter_difference` returned."""
    return Lora(rank=2 * lora.rank, alpha=2.0 * lora.rank, targets=lora.targets)


def clone_with_adapter(network: Network, name: str, lora: Lora) -> Network:
    """Create another network on the same weights with its own adapter: two models in the memory of one."""
    same = {id(x): x for x in chain(network.parameters(), network.buffers())}
    other = copy.deepcopy(network, same)
    add_adapter(other, name, lora)
    return other.requires_grad_(False).eval()


def load_adapter(network: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load the weights that `adapter_difference` returned into a network's adapters.

    Raises:
        ValueError: names what is missing, unexpected or of another shape, and the file.
    """
    own = {name: w for name, w in network.named_parameters() if ".adapters." in name}
    wrong = sorted(own.keys() ^ weights.keys()) or [n for n, w in own.items() if w.shape != weights[n].shape]
    if wrong:
        raise ValueError(
            f"{source} does not fit this model ({wrong[0]}): take the weights and config.json from the same folder"
        )
    for name, weight in own.items():
        weight.data.copy_(weights[name])
