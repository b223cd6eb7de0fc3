"""Compiled blocks and replayed CUDA graphs generate the same frames as eager ones."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lpm_model import cuda_graphs
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


class FakeGraph:
    """Runs a captured function again instead of replaying its kernels."""

    def __init__(self, function: Callable[[Sequence[torch.Tensor]], torch.Tensor], inputs: Sequence[torch.Tensor]):
        self.function, self.inputs = function, tuple(x.clone() for x in inputs)
        self.output, self.replays = torch.empty_like(inputs[0]), 0

    def replay(self) -> None:
        self.output.copy_(self.function(self.inputs))
        self.replays += 1


def test_chunks_through_graph_cache_equal_eager_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a CUDA graph needs from the host, without a GPU: static inputs, noise drawn beforehand."""
    eager, graphs = stream(model_of("cpu")), []

    def capture(function: Callable[[Sequence[torch.Tensor]], torch.Tensor], inputs: Sequence[torch.Tensor]) -> Any:
        graphs.append(FakeGraph(function, inputs))
        return SimpleNamespace(graph=graphs[-1], inputs=graphs[-1].inputs, output=graphs[-1].output)

    monkeypatch.setattr(cuda_graphs, "_capture", capture)
    model = model_of("cpu")
    model.use_cuda_graphs = True
    assert torch.equal(stream(model), eager)
    assert len(graphs) == 2  # backbone and refiner
    assert all(graph.replays >= 2 for graph in graphs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA graphs")
def test_cuda_graph_replay_equals_eager_chunks() -> None:
    model = model_of("cuda")
    model.accelerate(compile=True)
    replayed = stream(model)
    model.use_cuda_graphs = False
    assert torch.equal(stream(model), replayed)
