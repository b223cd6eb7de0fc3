"""Losses against their closed forms."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpm_model import losses
from tests.lpm_model.tiny import normal

A, B, C = (normal(2, 3, 4, 2, 2, seed=s) for s in (1, 2, 3))


def test_flow_matching_loss_is_the_mean_square_where_weights_are_one() -> None:
    assert torch.allclose(losses.flow_matching_loss(A, B, torch.ones(1, 1, 1, 1, 1)), (A - B).square().mean())


def test_flow_matching_loss_ignores_weight_zero() -> None:
    weight = torch.ones(2, 1, 4, 1, 1)
    weight[:, :, 0] = 0
    broken = A.clone()
    broken[:, :, 0] = 1e6
    assert torch.allclose(losses.flow_matching_loss(broken, B, weight), (A - B)[:, :, 1:].square().mean())
    assert losses.flow_matching_loss(A, B, torch.zeros(1, 1, 1, 1, 1)) == 0


def test_ode_regression_loss_is_zero_at_teacher_target() -> None:
    assert losses.ode_regression_loss(A, A, torch.ones(1)) == 0
    assert torch.allclose(losses.ode_regression_loss(A, B, torch.ones(1)), (A - B).square().mean())


@given(st.floats(0, 10))
@settings(max_examples=20, deadline=None)
def test_motion_weights_have_mean_one_and_bounded_contrast(extra: float) -> None:
    weight = losses.motion_weights(A, extra)
    assert weight.shape == (2, 1, 1, 2, 2)
    assert torch.allclose(weight.mean(dim=(3, 4)), torch.ones(2, 1, 1), atol=1e-5)
    assert float(weight.max() / weight.min()) <= 1 + extra + 1e-4


def test_motion_weights_favour_moving_cells() -> None:
    clip = torch.zeros(1, 3, 4, 2, 2)
    assert torch.equal(losses.motion_weights(clip, 4.0), torch.ones(1, 1, 1, 2, 2))
    assert torch.equal(losses.motion_weights(clip[:, :, :1], 4.0), torch.ones(1, 1, 1, 2, 2)), "one frame has no speed"
    clip[:, :, ::2, 0, 1] = 1
    weight = losses.motion_weights(clip, 4.0)[0, 0, 0]
    assert torch.allclose(weight, torch.tensor([[1.0, 5.0], [1.0, 1.0]]) / 2)


def test_dmd_gradient_is_zero_where_critic_and_teacher_agree() -> None:
    assert torch.equal(losses.dmd_gradient(A, B, B), torch.zeros_like(A))
    assert torch.equal(losses.dmd_gradient(A, A, A), torch.zeros_like(A))


def test_dmd_gradient_matches_closed_form_per_row() -> None:
    whole = losses.dmd_gradient(A, B, C)
    for row in range(2):
        expected = (C[row] - B[row]) / (A[row] - B[row]).abs().mean()
        assert torch.allclose(whole[row], expected, atol=1e-5)
    assert torch.allclose(losses.dmd_gradient(7 * A, 7 * B, 7 * C), whole, atol=1e-4)


def test_dmd_loss_has_the_given_gradient() -> None:
    sample = A.clone().requires_grad_()
    losses.dmd_loss(sample, C).backward()
    assert sample.grad is not None
    assert torch.allclose(sample.grad, C / C.numel(), atol=1e-7)
