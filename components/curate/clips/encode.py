"""Encode clips with the autoencoder that the config names."""

import functools
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class LatentEncoder(Protocol):
    """The autoencoder interface that curation uses."""

    digest: str
    """Digest of the weights."""

    def encode(self, clip: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return the latents float16 [C, 1+k, h, w] of an RGB clip uint8 [4k+1, H, W, 3]."""
        ...


class AutoencoderEncoder:
    """A video autoencoder of lpm_model, run one clip at a time on one thread, for the same bytes under any load.

    Matmuls run in the processor's native type: in bfloat16, latents differ by 0.3 % of their standard deviation.
    """

    def __init__(self, folder: str) -> None:
        import torch

        from lpm_model.autoencoder.load import load_autoencoder
        from lpm_model.precision import native_dtype

        torch.set_num_threads(1)
        self._torch: Any = torch
        self._type = native_dtype(torch.device("cpu"))
        self._model = load_autoencoder(Path(folder) if folder else None)
        self.digest = self._model.digest

    def encode(self, clip: NDArray[np.uint8]) -> NDArray[np.float16]:
        from lpm_model.precision import native_autocast

        torch = self._torch
        with torch.inference_mode(), native_autocast(torch.device("cpu")):
            # The first matmul casts pixels to its own dtype anyway; casting them earlier halves the bytes copied.
            pixels = torch.from_numpy(clip).float().div_(127.5).sub_(1.0).to(self._type)
            latents = self._model.encode(pixels.permute(3, 0, 1, 2)[None])[0]
        return np.asarray(latents.float().numpy(), np.float16)


@functools.cache
def load_encoder(folder: str) -> LatentEncoder:
    """Load the encoder of an autoencoder folder (empty = the shipped tiny one), once per process."""
    return AutoencoderEncoder(folder)
