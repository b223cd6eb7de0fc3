"""The Light-ASD network (Liao et al., CVPR 2023) scores whether a face speaks the given audio.

Inputs are grey mouth crops of 112 x 112 at 25 fps and 13 cepstral coefficients at 100 per second. Module names match
the published weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from components.curate.scorers.base import invalid_weights

if TYPE_CHECKING:
    from torch import Tensor

SIDE_PX, FPS, RATE = 112, 25, 16_000
"""Side of a mouth crop, crops per second, and audio samples per second."""
COEFFICIENTS, PER_FACE = 13, 4
"""Cepstral coefficients, and MFCC vectors per crop."""
_WIDTHS = (32, 64, 128)
_KERNELS = (3, 5)
_GREY_MEAN, _GREY_SPREAD = 0.4161, 0.1688
_WINDOW, _HOP, _TRANSFORM, _BANDS, _LIFTER = 400, 160, 512, 26, 22


class _Block(nn.Module):
    """Two parallel kernel sizes, each over space (or spectrum), then over time; a 1x1 convolution mixes their sum."""

    def __init__(self, before: int, after: int, *, audio: bool, stride: int = 1) -> None:
        super().__init__()
        self._across = "m" if audio else "s"
        convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if audio else (nn.Conv3d, nn.BatchNorm3d)
        strides = 1 if audio else (1, stride, stride)
        for k in _KERNELS:
            across, along = ((k, 1), (1, k)) if audio else ((1, k, k), (k, 1, 1))
            for name, width, size, step in (
                (f"{self._across}_{k}", before, across, strides),
                (f"t_{k}", after, along, 1),
            ):
                padding = tuple(n // 2 for n in size)
                self.add_module(name, convolution(width, after, size, stride=step, padding=padding, bias=False))  # type: ignore[arg-type]
                self.add_module(f"bn_{name}", norm(after, eps=1e-3))
        self.last = convolution(after, after, 1, bias=False)
        self.bn_last = norm(after, eps=1e-3)

    def forward(self, x: "Tensor") -> "Tensor":
        branches = []
        for k in _KERNELS:
            y = x
            for name in (f"{self._across}_{k}", f"t_{k}"):
                y = self.get_submodule(f"bn_{name}")(self.get_submodule(name)(y)).relu()
            branches.append(y)
        mixed: Tensor = self.bn_last(self.last(branches[0] + branches[1])).relu()
        return mixed


class _Encoder(nn.Module):
    """Three blocks with pooling after the first two."""

    def __init__(self, *, audio: bool) -> None:
        super().__init__()
        widths = (1, *_WIDTHS)
        for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True), 1):
            self.add_module(f"block{i}", _Block(before, after, audio=audio, stride=2 if i == 1 else 1))
        self._pool = nn.MaxPool2d((1, 3), (1, 2), (0, 1)) if audio else nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, x: "Tensor") -> "Tensor":
        for i in (1, 2, 3):
            x = self.get_submodule(f"block{i}")(x if i == 1 else self._pool(x))
        return x


class LightAsdNet(nn.Module):
    """Map mouth crops and audio to a score per crop; above 0 the person speaks."""

    def __init__(self) -> None:
        super().__init__()
        width = _WIDTHS[-1]
        recurrent = {name: nn.GRU(width, width, batch_first=True) for name in ("gru_forward", "gru_backward")}
        self.model = nn.ModuleDict(
            {
                "visualEncoder": _Encoder(audio=False),
                "audioEncoder": _Encoder(audio=True),
                "GRU": nn.ModuleDict(recurrent),
            }
        )
        self.lossAV = nn.ModuleDict({"FC": nn.Linear(width, 2)})

    def forward(self, faces: "Tensor", spectra: "Tensor") -> "Tensor":
        """Return scores [T].

        Args:
            faces: grey values 0..255, float32 [T, 112, 112].
            spectra: MFCC vectors, float32 [4 T, 13] (see `mfcc`).
        """
        visual = self.model["visualEncoder"]((faces[None, None] / 255 - _GREY_MEAN) / _GREY_SPREAD)
        audio = self.model["audioEncoder"](spectra.T[None, None])
        x = visual.amax(dim=(3, 4)).transpose(1, 2) + audio.mean(dim=2).transpose(1, 2)
        for name in ("gru_forward", "gru_backward"):  # the second one runs backwards in time
            x = nn.functional.gelu(self.model["GRU"].get_submodule(name)(x)[0]).flip(1)
        scores: Tensor = self.lossAV["FC"](x)[0, :, 1]
        return scores


def load(path: Path) -> LightAsdNet:
    """Load the network from a safetensors file.

    Raises:
        ValueError: the file is not a safetensors file, or does not hold this network's weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise invalid_weights("light_asd", path, f"is not a readable safetensors file ({error})") from error
    net = LightAsdNet()
    own = {
        name: tensor for name, tensor in state.items() if not name.startswith("lossV.")
    }  # auxiliary head of the training
    try:
        net.load_state_dict(own)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise invalid_weights("light_asd", path, f"does not hold the weights of Light-ASD ({line})") from error
    return net.eval()


def mfcc(audio: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return mel-frequency cepstral coefficients as python_speech_features 0.6 defines them, float32 [n, 13].

    Args:
        audio: samples at 16 kHz in the range of int16.
    """
    from scipy.fft import dct

    audio = np.concatenate([audio[:1], audio[1:] - 0.97 * audio[:-1]])
    count = 1 + max(-(-(len(audio) - _WINDOW) // _HOP), 0)
    padded = np.pad(audio, (0, max((count - 1) * _HOP + _WINDOW - len(audio), 0)))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][:count]
    power = np.abs(np.fft.rfft(pieces, _TRANSFORM)) ** 2 / _TRANSFORM
    tiny = np.finfo(float).eps
    bands = np.maximum(power @ _triangles(), tiny)
    lift = 1 + _LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / _LIFTER)
    found = dct(np.log(bands), norm="ortho", axis=1)[:, :COEFFICIENTS] * lift
    found[:, 0] = np.log(np.maximum(power.sum(axis=1), tiny))
    return np.asarray(found, np.float32)


def _triangles() -> NDArray[np.float64]:
    """Return mel filters with corners on whole FFT bins, float64 [257, 26]."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), _BANDS + 2)
    corners = np.floor((_TRANSFORM + 1) * 700 * (10 ** (mel / 2595) - 1) / RATE)
    at = np.arange(_TRANSFORM // 2 + 1)[:, None]
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (at - left) / (middle - left), (right - at) / (right - middle)
    return np.asarray(np.where(at < middle, np.maximum(rising, 0), np.maximum(falling, 0)) * (at >= left), np.float64)
