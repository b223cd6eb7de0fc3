"""Attention as pure functions: 3-D rotary positions and scaled dot product.

B batch, L tokens, N heads, D head width.
"""

import torch
from torch import Tensor
from torch.nn import functional

THETA = 10_000.0
NAIVE_ATTENTION_MAX_SCORES = 1 << 20
"""On CPU, up to this many scores a head, two matmuls are two to ten times faster than the fused kernel."""


def rope_angles(positions: Tensor, width: int) -> Tensor:
    """Return the angles of a rotary embedding (https://arxiv.org/abs/2104.09864).

    Args:
        positions: any shape, in units of the axis.
        width: channels of a head given to this axis.

    Returns:
        positions.shape + [width / 2].
    """
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
    return positions.double()[..., None] * THETA**-steps


def rope3d(time: Tensor, height: int, width: int, split: tuple[int, int, int]) -> Tensor:
    """Return the rotations of latent frames at given temporal positions.

    Args:
        time: [..., F] temporal position of each latent frame.
        height: rows of the token grid.
        width: columns of the token grid.
        split: channels of a head for time, row, column.

    Returns:
        float32 [..., F * height * width, D]: cosine and sine for each pair of channels.
    """

    def cos_sin(positions: Tensor, channels: int) -> Tensor:
        angles = rope_angles(positions, channels)
        return torch.stack([angles.cos(), angles.sin()], dim=-1).float()

    whole = (*time.shape, height, width, -1, 2)
    t = cos_sin(time, split[0])[..., :, None, None, :, :].expand(whole)
    rows = cos_sin(torch.arange(height, device=time.device), split[1])[:, None].expand(whole)
    columns = cos_sin(torch.arange(width, device=time.device), split[2]).expand(whole)
    return torch.cat([t, rows, columns], dim=-2).flatten(-2).flatten(-4, -2)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Apply rotations to neighbouring channel pairs.

    Args:
        x: [B, L, N, D].
        rotation: from `rope3d`, [L, D] or [B, L, D].

    Returns:
        [B, L, N, D], in the type of `x`.
    """
    pairs, angle = (t.unflatten(-1, (-1, 2)) for t in (x.float(), rotation.unsqueeze(-2)))
    if torch.compiler.is_compiling():  # compilers have no kernels for complex numbers
        (even, odd), (cosine, sine) = pairs.unbind(-1), angle.unbind(-1)
        rotated = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    else:  # two to ten times faster than the same in real numbers
        product = torch.view_as_complex(pairs.contiguous()) * torch.view_as_complex(angle)
        rotated = torch.view_as_real(product)
    return rotated.flatten(-2).to(x.dtype)


def use_naive_attention(queries: int, keys: int, device: torch.device) -> bool:
    """Return whether two matmuls are faster than the fused kernel for this many queries and keys."""
    return device.type == "cpu" and queries * keys <= NAIVE_ATTENTION_MAX_SCORES


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend from query to key, [B, L, N, D] to [B, L, N * D]; mask [B, 1, 1 or Lq, Lk] is True where a key is used."""
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if use_naive_attention(q.shape[2], k.shape[2], q.device):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = scores.softmax(-1).to(v.dtype) @ v
    else:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def attend_with_past(
    query: Tensor, past_key: Tensor, past_value: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attend to cached keys and to the chunk's own without concatenating the two in memory.

    Args:
        query: [B, L, N, D] rotated.
        past_key: [B, N, D, P] rotated, laid out for the matmul.
        past_value: [B, N, P, D].
        key: [B, L, N, D] rotated.
        value: [B, L, N, D].
        mask: [B, 1, 1, P + L], True where a key is attended to.

    Returns:
        [B, L, N * D].
    """
    q = (query * query.shape[-1] ** -0.5).transpose(1, 2)
    scores = torch.cat([q @ past_key, q @ key.permute(0, 2, 3, 1)], dim=-1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1).to(value.dtype)
    past = past_key.shape[-1]
    out = weights[..., :past] @ past_value + weights[..., past:] @ value.transpose(1, 2)
    return out.transpose(1, 2).flatten(2)


def audio_windows(tokens: Tensor, window: int, frames: int) -> Tensor:
    """Return the audio tokens that each of the last `frames` latent frames may attend to.

    Args:
        tokens: [B, P + F, n, C]: n tokens a latent frame, at least `window` - 1 frames before the first.
        window: latent frames in a window: a frame's own and those before it.
        frames: F.

    Returns:
        [B, F, window * n, C], oldest first.
    """
    if tokens.shape[1] < frames + window - 1:
        raise ValueError(f"audio covers {tokens.shape[1]} latent frames; {frames + window - 1} are needed")
    tail = tokens[:, tokens.shape[1] - frames - window + 1 :]
    return tail.unfold(1, window, 1).permute(0, 1, 4, 2, 3).flatten(2, 3)
