"""Compiled blocks and recorded chunks show what plain ones show."""

import pytest
import torch

from lpm_model.online import OnlineModel
from tests.lpm_model import tiny

CHUNKS = 9
"""Past the point where windows are full and recordings begin."""


def shown(model: OnlineModel) -> torch.Tensor:
    state = model.init_state(tiny.person(), batch=1)
    frames = []
    for number in range(CHUNKS):
        voice = tiny.voice(model.chunk_samples + model.lookahead_samples, seed=number)
        made, state = model.step(state, voice, voice.flip(1))
        frames.append(made.int())
    return torch.cat(frames, dim=1)


def model_of(device: str) -> OnlineModel:
    return tiny.online_model(tiny.online_config(refiner_sigma=0.3)).to(device)


@pytest.mark.slow
def test_compiled_blocks_stream_as_plain_ones() -> None:
    model = model_of("cpu")
    plain = shown(model)
    model.accelerate(compile=True)
    assert (shown(model) - plain).abs().max() <= 1  # of 255: sums are taken in another order


@pytest.mark.skipif(not torch.cuda.is_available(), reason="recordings are CUDA graphs")
def test_recorded_chunks_are_those_that_were_not() -> None:
    model = model_of("cuda")
    model.accelerate(compile=True)
    recorded = shown(model)
    model.use_cuda_graphs = False
    assert torch.equal(shown(model), recorded)
