"""CUDA graph capture and replay: the host launches a whole chunk at once instead of thousands of small kernels.

A captured function reads and writes buffers that a cache never reallocates; everything else is copied in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class CapturedGraph:
    """One captured function with its static inputs and output."""

    graph: "torch.cuda.CUDAGraph"
    inputs: tuple[Tensor, ...]
    output: Tensor


@dataclass(slots=True)
class GraphCache:
    """CUDA graphs over the buffers of one KV cache, by name."""

    graphs: dict[str, CapturedGraph | None] = field(default_factory=dict)
    """None for a function that has run once, without capture."""

    def run(self, name: str, function: Callable[[Sequence[Tensor]], Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """Run a function: eagerly the first time, captured the second time, replayed afterwards.

        Args:
            name: identifies the function and everything it closes over.
            function: must not synchronise with the device; its compiled code and allocations exist after one run.
            inputs: everything that differs between calls, of the same shapes every time.

        Returns:
            What `function` returns, a copy that the next replay does not overwrite.
        """
        if name not in self.graphs:
            self.graphs[name] = None
            return function(inputs)
        captured = self.graphs[name] or _capture(function, inputs)
        self.graphs[name] = captured
        for static, given in zip(captured.inputs, inputs, strict=True):
            static.copy_(given)
        captured.graph.replay()
        return captured.output.clone()

    def clear(self) -> None:
        """Discard all graphs, because the buffers that they read have changed shape or content."""
        self.graphs.clear()


def _capture(function: Callable[[Sequence[Tensor]], Tensor], inputs: Sequence[Tensor]) -> CapturedGraph:
    static = tuple(x.clone() for x in inputs)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        output = function(static)
    return CapturedGraph(graph, static, output)
