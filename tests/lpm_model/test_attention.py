"""Rotary positions, attention and audio windows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lpm_model import attention
from lpm_model.config import ModelConfig
from tests.lpm_model.tiny import normal

SPLIT = ModelConfig(width=64, heads=2).rope_split


def test_rope_split_covers_the_head() -> None:
    for width, heads in ((32, 2), (256, 2), (5120, 40)):
        config = ModelConfig(width=width, heads=heads, audio_width=0)
        assert sum(config.rope_split) == config.head_width
        assert all(part % 2 == 0 for part in config.rope_split)
    assert ModelConfig(width=5120, heads=40).rope_split == (44, 42, 42)


def test_rope_angles_match_closed_form() -> None:
    angles = attention.rope_angles(torch.tensor([3]), 4)
    assert torch.allclose(angles, torch.tensor([[3.0, 3.0 / 100.0]], dtype=torch.float64))


def test_rotate_preserves_norms_and_rotates_pairs() -> None:
    x = normal(1, 6, 2, 32, seed=3)
    rotated = attention.rotate(x, attention.rope3d(torch.tensor([5]), 2, 3, SPLIT))
    pairs = lambda y: y.unflatten(-1, (-1, 2)).norm(dim=-1)  # noqa: E731
    assert torch.allclose(pairs(rotated), pairs(x), atol=1e-5)
    quarter = torch.tensor([[0.0, 1.0]])
    assert torch.allclose(attention.rotate(torch.tensor([[[[1.0, 0.0]]]]), quarter).flatten(), torch.tensor([0.0, 1.0]),
                          atol=1e-6)  # fmt: skip


@given(st.integers(-20, 40), st.integers(0, 40), st.integers(-50, 500))
@settings(max_examples=30, deadline=None)
def test_rope_scores_depend_on_time_differences_only(first: int, second: int, shift: int) -> None:
    q, k = normal(1, 4, 1, 32, seed=1), normal(1, 4, 1, 32, seed=2)

    def scores(offset: int) -> torch.Tensor:
        at = lambda t: attention.rope3d(torch.tensor([t + offset]), 2, 2, SPLIT)  # noqa: E731
        return torch.einsum("bqnd,bknd->bqk", attention.rotate(q, at(first)), attention.rotate(k, at(second)))

    assert torch.allclose(scores(0), scores(shift), atol=1e-4)


def test_rope3d_orders_tokens_by_time_row_column() -> None:
    cosine, sine = attention.rope3d(torch.tensor([7, 9]), 2, 3, SPLIT).unflatten(-1, (-1, 2)).unbind(-1)
    grid = torch.atan2(sine, cosine).unflatten(0, (2, 2, 3))
    time, rows = SPLIT[0] // 2, SPLIT[1] // 2
    wrapped = lambda angle: torch.polar(torch.ones(()), torch.tensor(float(angle))).angle()  # noqa: E731
    for t, position in enumerate((7, 9)):
        for row in range(2):
            for column in range(3):
                cell = grid[t, row, column]
                expected = torch.stack([wrapped(position), wrapped(row), wrapped(column)])
                assert torch.allclose(cell[[0, time, time + rows]], expected, atol=1e-5)


@pytest.mark.parametrize("max_scores", [1 << 20, 0], ids=["naive", "fused"])
@pytest.mark.parametrize("masked", ["none", "keys", "full"])
def test_attend_equals_torch_attention(max_scores: int, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "NAIVE_ATTENTION_MAX_SCORES", max_scores)
    q, k, v = normal(2, 5, 3, 8, seed=1), normal(2, 7, 3, 8, seed=2), normal(2, 7, 3, 8, seed=3)
    rows = {"keys": 1, "full": 5}.get(masked)
    mask = None if rows is None else normal(2, 1, rows, 7, seed=4) > -0.5
    if mask is not None:
        mask[..., 0] = True
    expected = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
    assert torch.allclose(attention.attend(q, k, v, mask), expected.transpose(1, 2).flatten(2), atol=1e-5)


def test_attend_ignores_masked_keys() -> None:
    q, k, v = normal(1, 2, 1, 8, seed=1), normal(1, 4, 1, 8, seed=2), normal(1, 4, 1, 8, seed=3)
    mask = torch.tensor([True, True, False, True])[None, None, None]
    kept = mask.flatten()
    assert torch.allclose(attention.attend(q, k, v, mask), attention.attend(q, k[:, kept], v[:, kept]), atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attend_with_past_equals_attention_over_concatenated_keys(masked: bool) -> None:
    q, k, v = normal(2, 3, 2, 8, seed=1), normal(2, 9, 2, 8, seed=2), normal(2, 9, 2, 8, seed=3)
    mask = normal(2, 1, 1, 9, seed=4) > -0.5 if masked else None
    if mask is not None:
        mask[..., -1] = True
    past_key, past_value = k[:, :6].permute(0, 2, 3, 1), v[:, :6].transpose(1, 2)
    apart = attention.attend_with_past(q, past_key, past_value, k[:, 6:], v[:, 6:], mask)
    assert torch.allclose(apart, attention.attend(q, k, v, mask), atol=1e-5)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_audio_windows_hold_own_and_earlier_tokens(window: int, frames: int, spare: int) -> None:
    total = frames + window - 1 + spare
    tokens = torch.arange(total * 2).view(1, total, 2, 1)
    got = attention.audio_windows(tokens, window, frames)[0, :, :, 0]
    for frame in range(frames):
        newest = total - frames + frame
        expected = [2 * latent + n for latent in range(newest - window + 1, newest + 1) for n in (0, 1)]
        assert got[frame].tolist() == expected


def test_audio_windows_reject_too_little_audio() -> None:
    with pytest.raises(ValueError, match="4 latent frames; 5 are needed"):
        attention.audio_windows(torch.zeros(1, 4, 4, 8), 3, 3)
