"""Chunks as CUDA graphs: thousands of small kernels are launched at once, and the processor waits for none of them.

What is recorded reads and writes the buffers that a cache holds for ever; everything else comes in through copies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Recording:
    """One function over one cache."""

    graph: "torch.cuda.CUDAGraph"
    inputs: tuple[Tensor, ...]
    output: Tensor


@dataclass(slots=True)
class Recordings:
    """What was recorded over one cache, by name."""

    made: dict[str, Recording | None] = field(default_factory=dict)
    """None of what has run once."""

    def play(self, name: str, make: Callable[[Sequence[Tensor]], Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """What `make` gives: its first call runs plainly, the second is recorded, the later ones are played back.

        Args:
            name: of the function and of what it closes over.
            make: must ask the device for nothing; what it compiles and allocates is there after one run.
            inputs: everything that differs from call to call, of the same shapes every time.
        """
        if name not in self.made:
            self.made[name] = None
            return make(inputs)
        recording = self.made[name] or _record(make, inputs)
        self.made[name] = recording
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given)
        recording.graph.replay()
        return recording.output.clone()


def _record(make: Callable[[Sequence[Tensor]], Tensor], inputs: Sequence[Tensor]) -> Recording:
    own = tuple(x.clone() for x in inputs)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        output = make(own)
    return Recording(graph, own, output)
