"""Sequence parallelism: processes share the tokens of one batch (Ulysses, https://arxiv.org/abs/2309.14509).

Each process holds every latent frame, and of each the same share of its tokens, so that what goes by latent frame
(modulation, audio windows, text) needs nothing from the others. Self-attention needs all tokens: for it, tokens are
exchanged for heads and back.

P processes, B batch, G latent frames and reference images, T tokens of each, l = G T / P own tokens, N heads, D head
width, C channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from lpm_model.attention import attend


class _Exchange(torch.autograd.Function):
    """Slice i of the first axis goes to process i, and gradients go back the way they came."""

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
    """Every process's part, stacked, for a loss that all compute alike: each takes the gradient of its own part."""

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
        """P."""
        return distributed.get_world_size(self.group)

    def own(self, tokens: Tensor, frames: int) -> Tensor:
        """This process's share of each latent frame, [..., G T, C] to [..., l, C].

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

    def whole(self, tokens: Tensor, frames: int) -> Tensor:
        """All tokens in their places on every process, [B, l, C] to [B, G T, C]."""
        parts = _Gather.apply(tokens.contiguous(), self.group)  # type: ignore[no-untyped-call]
        return parts.unflatten(2, (frames, -1)).permute(1, 2, 0, 3, 4).flatten(1, 3)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention over the tokens of all processes, [B, l, N, D] in and [B, l, N * D] out.

        Tokens come in the order of processes, which attention without a mask does not see.

        Raises:
            ValueError: N does not divide by P.
        """
        if query.shape[2] % self.size:
            raise ValueError(
                f"{query.shape[2]} heads do not divide by sequence_parallel={self.size}: choose a divisor of both"
            )
        heads = torch.stack([query, key, value]).unflatten(3, (self.size, -1)).permute(3, 0, 1, 2, 4, 5)
        tokens = self._exchange(heads).permute(1, 2, 0, 3, 4, 5).flatten(2, 3)
        out = attend(*tokens.unbind(0)).unflatten(1, (self.size, -1)).transpose(0, 1)
        return self._exchange(out).permute(1, 2, 0, 3).flatten(2)

    def _exchange(self, slices: Tensor) -> Tensor:
        return _Exchange.apply(slices.contiguous(), self.group)  # type: ignore[no-untyped-call]
