"""Flow matching against its closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpm_model import flow
from tests.lpm_model.tiny import normal

CLEAN, NOISE = normal(2, 3, 4, 2, 2, seed=1), normal(2, 3, 4, 2, 2, seed=2)


def test_interpolate_ends_at_clean_and_noise() -> None:
    assert torch.equal(flow.interpolate(CLEAN, NOISE, torch.tensor(0.0)), CLEAN)
    assert torch.equal(flow.interpolate(CLEAN, NOISE, torch.tensor(1.0)), NOISE)


@given(st.floats(0.01, 0.99))
@settings(max_examples=20, deadline=None)
def test_velocity_is_the_derivative_of_interpolate(sigma: float) -> None:
    level, step = torch.tensor(sigma, dtype=torch.float64), 1e-4
    clean, noise = CLEAN.double(), NOISE.double()
    here, there = flow.interpolate(clean, noise, level), flow.interpolate(clean, noise, level + step)
    assert torch.allclose((there - here) / step, flow.velocity(clean, noise), atol=1e-8)
    assert torch.allclose(flow.clean_from_velocity(here, flow.velocity(clean, noise), level), clean, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_step_is_exact_on_a_straight_path(steps: int) -> None:
    x, sigmas = NOISE, flow.schedule(steps, 3.0)
    for sigma, target in zip(sigmas, sigmas[1:], strict=False):
        x = flow.euler_step(x, flow.velocity(CLEAN, NOISE), sigma, target)
    assert torch.allclose(x, CLEAN, atol=1e-5)


def test_interpolate_accepts_levels_per_latent() -> None:
    sigma = torch.tensor([[0.0, 0.2, 0.5, 1.0], [1.0, 0.5, 0.2, 0.0]])
    noisy = flow.interpolate(CLEAN, NOISE, sigma[:, None, :, None, None])
    assert torch.allclose(noisy[1, :, 2], 0.8 * CLEAN[1, :, 2] + 0.2 * NOISE[1, :, 2])


@given(st.floats(0, 1), st.floats(0.2, 12))
@settings(max_examples=50, deadline=None)
def test_shift_sigma_scales_odds(sigma: float, shift: float) -> None:
    """Shifting multiplies the odds sigma / (1 - sigma) by the shift, so that shifts compose and invert."""
    level = torch.tensor(sigma, dtype=torch.float64)
    moved = flow.shift_sigma(level, shift)
    assert torch.allclose(moved * (1 - level), shift * level * (1 - moved), atol=1e-12)
    assert torch.allclose(flow.shift_sigma(moved, 1 / shift), level, atol=1e-12)


def test_schedule_falls_from_one_to_zero() -> None:
    sigmas = flow.schedule(12, 3.0)
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (1, 0, 13)
    assert bool((sigmas.diff() < 0).all())
    assert torch.allclose(flow.schedule(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    with pytest.raises(ValueError, match="give at least 1"):
        flow.schedule(0, 3.0)
