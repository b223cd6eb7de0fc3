"""Exponential moving average (EMA) of trainable weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """A moving average of some weights, initialised with them; also a plain copy of weights (decay 0)."""

    count: Tensor

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float = 0.0) -> None:
        super().__init__()
        self.weights, self.decay = list(weights.values()), decay  # in a list: not part of this module's state
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        for number, weight in enumerate(self.weights):
            self.register_buffer(f"value{number}", weight.detach().clone())

    @property
    def values(self) -> list[Tensor]:
        """The averaged tensor of each weight."""
        return [self.get_buffer(f"value{number}") for number in range(len(self.weights))]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights; the first call copies them."""
        fraction = 1 - self.decay if self.count else 1.0
        for value, weight in zip(self.values, self.weights, strict=True):
            value.lerp_(weight, fraction)
        self.count += 1

    @torch.no_grad()
    def load(self, values: list[Tensor]) -> None:
        """Set the average to these values."""
        for own, new in zip(self.values, values, strict=True):
            own.copy_(new)

    @torch.no_grad()
    def copy_to(self) -> None:
        """Copy the average into the weights of the network."""
        for value, weight in zip(self.values, self.weights, strict=True):
            weight.copy_(value)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Swap the average into the network inside the context; autograd graphs must not cross its boundaries."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for value, weight in zip(self.values, self.weights, strict=True):
            value.data, weight.data = weight.data, value.data
        torch.clear_autocast_cache()
