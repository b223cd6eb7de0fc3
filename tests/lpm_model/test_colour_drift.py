"""The colour guard: true colours, slow drifts go, quick changes stay, rows apart."""

import cv2
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpm_model.colour_drift import ColourState, correct_colour_drift, init_colour_state, lab_to_rgb, rgb_to_lab
from tests.lpm_model.tiny import normal


def picture(seed: int = 0, batch: int = 1) -> torch.Tensor:
    """[B, 3, 4, 8, 8] in [-0.8, 0.8]."""
    return (0.3 * normal(batch, 3, 4, 8, 8, seed=seed)).clamp(-0.8, 0.8)


def guard(video: torch.Tensor, state: ColourState, strength: float = 1.0) -> tuple[torch.Tensor, ColourState]:
    return correct_colour_drift(video, state, strength=strength, seconds=1 / 6, time_constant_s=1.0)


def test_lab_is_opencvs() -> None:
    rgb = torch.rand(40, 40, 3, generator=torch.Generator().manual_seed(0))
    expected = cv2.cvtColor(rgb.numpy(), cv2.COLOR_RGB2LAB)
    error = np.abs(rgb_to_lab(rgb).numpy() - expected)  # OpenCV interpolates in a table
    assert error.mean() < 0.1
    assert error.max() < 0.5


def test_lab_of_known_colours() -> None:
    """http://www.brucelindbloom.com, sRGB, D65."""
    known = {(1, 0, 0): (53.24, 80.09, 67.20), (1, 1, 1): (100, 0, 0), (0, 0, 1): (32.30, 79.19, -107.86)}
    for rgb, lab in known.items():
        assert torch.allclose(rgb_to_lab(torch.tensor(rgb).float()), torch.tensor(lab).float(), atol=0.02)


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_there_and_back(rgb: list[float]) -> None:
    colour = torch.tensor(rgb)
    assert torch.allclose(lab_to_rgb(rgb_to_lab(colour)), colour, atol=2e-4)


def test_what_does_not_drift_is_left_as_it_is() -> None:
    video = picture()
    out, state = guard(video, init_colour_state(video))
    assert torch.allclose(out, video, atol=1e-3)
    assert torch.allclose(state.average, state.target, atol=1e-3)


def test_a_lasting_cast_is_taken_back_and_a_flash_is_not() -> None:
    video = picture()
    cast = (0.8 * video + torch.tensor([0.12, -0.05, 0.04]).view(1, 3, 1, 1, 1)).clamp(-1, 1)
    state = init_colour_state(video)
    flash, _ = guard(cast, state)
    assert (flash - cast).abs().mean() < 0.25 * (video - cast).abs().mean()
    for _ in range(40):
        out, state = guard(cast, state)
    assert (out - video).abs().mean() < 0.25 * (video - cast).abs().mean()
    half, _ = guard(cast, state, strength=0.5)
    assert torch.allclose((half - cast).abs().mean(), (out - cast).abs().mean() / 2, rtol=0.15)


def test_a_flat_picture_is_shifted_and_not_blown_up() -> None:
    wanted, flat = picture(), torch.full((1, 3, 4, 8, 8), 0.2)
    state = init_colour_state(wanted)
    for _ in range(40):
        out, state = guard(flat, state)
    assert bool(out.isfinite().all())
    assert float(out.std(dim=(2, 3, 4)).max()) < 1e-4


def test_rows_do_not_share_their_colours() -> None:
    pair, other = picture(1, batch=2), picture(2, batch=2)
    both, _ = guard(other, guard(other, init_colour_state(pair))[1])
    for row in range(2):
        alone, now = pair[row : row + 1], other[row : row + 1]
        out, _ = guard(now, guard(now, init_colour_state(alone))[1])
        assert torch.allclose(out, both[row : row + 1], atol=1e-5)
