"""Colour-drift correction: Lab conversion, slow drifts removed, quick changes kept, independent rows."""

import cv2
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpm_model.colour_drift import ColourState, correct_colour_drift, init_colour_state, lab_to_rgb, rgb_to_lab
from tests.lpm_model.tiny import normal


def image(seed: int = 0, batch: int = 1) -> torch.Tensor:
    """[B, 3, 4, 8, 8] in [-0.8, 0.8]."""
    return (0.3 * normal(batch, 3, 4, 8, 8, seed=seed)).clamp(-0.8, 0.8)


def correct(video: torch.Tensor, state: ColourState, strength: float = 1.0) -> tuple[torch.Tensor, ColourState]:
    return correct_colour_drift(video, state, strength=strength, seconds=1 / 6, time_constant_s=1.0)


def test_rgb_to_lab_equals_opencv() -> None:
    rgb = torch.rand(40, 40, 3, generator=torch.Generator().manual_seed(0))
    expected = cv2.cvtColor(rgb.numpy(), cv2.COLOR_RGB2LAB)
    error = np.abs(rgb_to_lab(rgb).numpy() - expected)  # OpenCV interpolates in a table
    assert error.mean() < 0.1
    assert error.max() < 0.5


def test_rgb_to_lab_of_known_colours() -> None:
    """http://www.brucelindbloom.com, sRGB, D65."""
    known = {(1, 0, 0): (53.24, 80.09, 67.20), (1, 1, 1): (100, 0, 0), (0, 0, 1): (32.30, 79.19, -107.86)}
    for rgb, lab in known.items():
        assert torch.allclose(rgb_to_lab(torch.tensor(rgb).float()), torch.tensor(lab).float(), atol=0.02)


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_lab_to_rgb_inverts_rgb_to_lab(rgb: list[float]) -> None:
    colour = torch.tensor(rgb)
    assert torch.allclose(lab_to_rgb(rgb_to_lab(colour)), colour, atol=2e-4)


def test_correction_keeps_video_without_drift() -> None:
    video = image()
    out, state = correct(video, init_colour_state(video))
    assert torch.allclose(out, video, atol=1e-3)
    assert torch.allclose(state.average, state.target, atol=1e-3)


def test_correction_removes_lasting_cast_and_keeps_flash() -> None:
    video = image()
    cast = (0.8 * video + torch.tensor([0.12, -0.05, 0.04]).view(1, 3, 1, 1, 1)).clamp(-1, 1)
    state = init_colour_state(video)
    flash, _ = correct(cast, state)
    assert (flash - cast).abs().mean() < 0.25 * (video - cast).abs().mean()
    for _ in range(40):
        out, state = correct(cast, state)
    assert (out - video).abs().mean() < 0.25 * (video - cast).abs().mean()
    half, _ = correct(cast, state, strength=0.5)
    assert torch.allclose((half - cast).abs().mean(), (out - cast).abs().mean() / 2, rtol=0.15)


def test_correction_shifts_flat_image_without_stretching() -> None:
    target, flat = image(), torch.full((1, 3, 4, 8, 8), 0.2)
    state = init_colour_state(target)
    for _ in range(40):
        out, state = correct(flat, state)
    assert bool(out.isfinite().all())
    assert float(out.std(dim=(2, 3, 4)).max()) < 1e-4


def test_correction_is_independent_per_row() -> None:
    pair, other = image(1, batch=2), image(2, batch=2)
    both, _ = correct(other, correct(other, init_colour_state(pair))[1])
    for row in range(2):
        alone, now = pair[row : row + 1], other[row : row + 1]
        out, _ = correct(now, correct(now, init_colour_state(alone))[1])
        assert torch.allclose(out, both[row : row + 1], atol=1e-5)
