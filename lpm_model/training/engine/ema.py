"""Copies of the weights that learn: their moving average, and the best of them so far."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """A moving average of some weights: it starts as they are."""

    count: Tensor

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float = 0.0) -> None:
        super().__init__()
        self.weights, self.decay = list(weights.values()), decay  # in a list: not part of this module's state
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        for number, weight in enumerate(self.weights):
            self.register_buffer(f"value{number}", weight.detach().clone())

    @property
    def values(self) -> list[Tensor]:
        """Of each weight."""
        return [self.get_buffer(f"value{number}") for number in range(len(self.weights))]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights as they are now; the first time, onto them."""
        share = 1 - self.decay if self.count else 1.0
        for value, weight in zip(self.values, self.weights, strict=True):
            value.lerp_(weight, share)
        self.count += 1

    @torch.no_grad()
    def take(self, values: list[Tensor]) -> None:
        """Become these values."""
        for own, new in zip(self.values, values, strict=True):
            own.copy_(new)

    @torch.no_grad()
    def settle(self) -> None:
        """Make the weights what this is."""
        for value, weight in zip(self.values, self.weights, strict=True):
            weight.copy_(value)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """The network computes with these values for a while; no graph may be open across its ends."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for value, weight in zip(self.values, self.weights, strict=True):
            value.data, weight.data = weight.data, value.data
        torch.clear_autocast_cache()
