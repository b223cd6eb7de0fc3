"""Compiled blocks and replayed CUDA graphs generate the same frames as eager ones."""

import pytest
import torch

from lpm_model.online import OnlineModel
from tests.lpm_model import tiny

CHUNKS = 9
"""Enough to fill the window, capture and replay."""


def stream(model: OnlineModel) -> torch.Tensor:
    state = model.init_state(tiny.person(), batch=1)
    frames = []
    for number in range(CHUNKS):
        voice = tiny.voice(model.chunk_samples + model.lookahead_samples, seed=number)
        output, state = model.step(state, voice, voice.flip(1))
        frames.append(output.int())
    return torch.cat(frames, dim=1)


def model_of(device: str) -> OnlineModel:
    return tiny.online_model(tiny.online_config(refiner_sigma=0.3)).to(device)


@pytest.mark.slow
def test_compiled_blocks_stream_like_eager_ones() -> None:
    model = model_of("cpu")
    eager = stream(model)
    model.accelerate(compile=True)
    assert (stream(model) - eager).abs().max() <= 1  # of 255: sums are taken in another order


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA graphs")
def test_cuda_graph_replay_equals_eager_chunks() -> None:
    model = model_of("cuda")
    model.accelerate(compile=True)
    replayed = stream(model)
    model.use_cuda_graphs = False
    assert torch.equal(stream(model), replayed)
