"""Sequence parallelism: processes share the tokens of one batch (Ulysses, https://arxiv.org/abs/2309.14509).

Each process holds the same fraction of the tokens of every latent frame, so that everything computed by latent frame
(modulation, audio windows, text) needs no communication. Self-attention needs all tokens: for it, an all-to-all
exchanges tokens for heads and back.

P processes, B batch, G latent frames and reference images, T tokens of each, l = G T / P tokens of this process, N
heads, D head width, C channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, distributed

from lpm_model.attention import attend


class _Exchange(torch.autograd.Function):
    """All-to-all: sends slice i of the first axis to process i, and gradients back."""

    @staticmethod
    def forward(ctx: Any, slices: Tensor, group: Any) -> Tensor:
        ctx.group = group
        received = torch.empty_like(slices)
        distributed.all_to_all_single(received, slices, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(gradients[0].contiguous(), ctx.group), None  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """All-gather for a loss that is the same on all processes: each backpropagates the gradient of its own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        ctx.rank = distributed.get_rank(group)
        parts = [torch.empty_like(part) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, part, group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.rank], None


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The processes that share the tokens of one batch; each weight's gradient is the sum of theirs."""

    group: Any
    """Process group."""

    @property
    def size(self) -> int:
        """Number of processes (P)."""
        return distributed.get_world_size(self.group)

    def shard(self, tokens: Tensor, frames: int) -> Tensor:
        """Return this process's tokens of each latent frame, [..., G T, C] to [..., l, C].

        Raises:
            ValueError: T does not divide by P.
        """
        grouped = tokens.unflatten(-2, (frames, -1))
        share, rest = divmod(grouped.shape[-2], self.size)
        if rest:
            raise ValueError(
                f"{grouped.shape[-2]} tokens a latent frame do not divide by sequence_parallel={self.size}: "
                "choose a divisor of both the tokens and the heads"
            )
        return grouped.narrow(-2, distributed.get_rank(self.group) * share, share).flatten(-3, -2)

    def gather(self, tokens: Tensor, frames: int) -> Tensor:
        """Gather all tokens in order on every process, [B, l, C] to [B, G T, C]."""
        parts = _Gather.apply(tokens.contiguous(), self.group)  # type: ignore[no-untyped-call]
        return rearrange(parts, "p b (f t) c -> b (f p t) c", f=frames)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the tokens of all processes, [B, l, N, D] in and [B, l, N * D] out.

        Tokens are in the order of processes, which does not matter to attention without a mask.

        Raises:
            ValueError: N does not divide by P.
        """
        if query.shape[2] % self.size:
            raise ValueError(
                f"{query.shape[2]} heads do not divide by sequence_parallel={self.size}: choose a divisor of both"
            )
        heads = rearrange(torch.stack([query, key, value]), "s b l (p n) d -> p s b l n d", p=self.size)
        tokens = rearrange(self._exchange(heads), "p s b l n d -> s b (p l) n d")
        out = rearrange(attend(*tokens.unbind(0)), "b (p l) c -> p b l c", p=self.size)
        return rearrange(self._exchange(out), "p b l c -> b l (p c)")

    def _exchange(self, slices: Tensor) -> Tensor:
        return _Exchange.apply(slices.contiguous(), self.group)  # type: ignore[no-untyped-call]
