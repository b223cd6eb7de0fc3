"""dlib's face network (dlib_face_recognition_resnet_model_v1, public domain) in PyTorch, several times as fast.

A residual network of 29 convolutions (He et al. 2016, "Deep Residual Learning"), as dlib's
examples/dnn_face_recognition_ex.cpp describes it: sums of pictures of unlike sizes fill the smaller one with zeros, and
strides other than one have no padding.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from components.curate.identity import SIZE

SIDE_PX = 150
"""Side of a face chip."""
_MEAN_RGB = (122.782, 117.001, 104.298)
_FIRST_WIDTH = 32
_WIDTHS = (32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256)
"""Channels of the residual blocks."""
_HALVED = (3, 7, 10, 13)
"""Blocks that halve the picture."""
_VERSION = 2
"""Of tensors in the file."""


class _Layer(NamedTuple):
    weight: Tensor
    bias: Tensor


class FaceNetwork:
    """Who a face shows: 128 numbers whose Euclidean distance tells people apart."""

    def __init__(self, path: Path) -> None:
        """Read the weights of a .dat file that is known by its digest."""
        tensors = _Tensors(path.read_bytes())
        self._first = tensors.layer(3, _FIRST_WIDTH, 7)
        self._blocks: list[tuple[_Layer, _Layer]] = []
        before = _FIRST_WIDTH
        for width in _WIDTHS:
            self._blocks.append((tensors.layer(before, width, 3), tensors.layer(width, width, 3)))
            before = width
        self._last = tensors.next(before, SIZE).reshape(before, SIZE)

    def __call__(self, chip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The embedding, float32 [128], of a face chip: RGB [150, 150, 3]."""
        with torch.inference_mode():
            x = (torch.from_numpy(chip).float() - torch.tensor(_MEAN_RGB)) / 256
            x = functional.relu(functional.conv2d(x.permute(2, 0, 1)[None], *self._first, stride=2))
            x = functional.max_pool2d(x, 3, 2)
            for number, (first, second) in enumerate(self._blocks):
                halves = number in _HALVED
                out = functional.conv2d(x, *first, stride=2 if halves else 1, padding=0 if halves else 1)
                out = functional.conv2d(functional.relu(out), *second, padding=1)
                x = functional.relu(_sum(out, functional.avg_pool2d(x, 2) if halves else x))
            return np.asarray((x.mean(dim=(2, 3)) @ self._last)[0].numpy(), np.float32)


def _sum(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two tensors [1, C, H, W] of unlike sizes, the smaller one filled with zeros."""
    shape = [max(sides) for sides in zip(one.shape[1:], other.shape[1:], strict=True)]
    grown = []
    for tensor in (one, other):
        missing = [wanted - side for wanted, side in zip(shape, tensor.shape[1:], strict=True)]
        grown.append(functional.pad(tensor, (0, missing[2], 0, missing[1], 0, missing[0])))
    return grown[0] + grown[1]


class _Tensors:
    """The tensors of parameters in a file that dlib wrote, from the input to the output; the rest is passed over."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def next(self, *sizes: int) -> Tensor:
        """The next tensor of these sizes, flat: a version, four sizes and the floats.

        Raises:
            ValueError: there is none.
        """
        header = _number(_VERSION) + b"".join(_number(size) for size in (*sizes, *[1] * (4 - len(sizes))))
        found = self._data.find(header, self._at)
        if found < 0:
            raise ValueError(f"no tensor of sizes {sizes}: install the pinned version of the weights again")
        start, count = found + len(header), int(np.prod(sizes))
        self._at = start + 4 * count
        return torch.from_numpy(np.frombuffer(self._data, "<f4", count, start).astype(np.float32))

    def layer(self, before: int, width: int, side: int) -> _Layer:
        """A convolution and the affine map after it, folded into one."""
        values, scales = self.next(width * (before * side**2 + 1)), self.next(2 * width)
        weight, bias = values[:-width].reshape(width, before, side, side), values[-width:]
        scale, shift = scales[:width], scales[width:]
        folded = (weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        return _Layer(folded, bias * scale + shift)


def _number(value: int) -> bytes:
    """A positive number as dlib writes it: how many bytes it has, and these."""
    length = (value.bit_length() + 7) // 8
    return bytes([length]) + value.to_bytes(length, "little")
