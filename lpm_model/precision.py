"""Data type of matmuls: bfloat16 where the device has native instructions for it, else float32.

A processor without them emulates bfloat16, a hundred times slower than float32.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def native_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """Return the type of matmuls on a device: bfloat16 on a GPU and on a CPU with AMX or AVX512-BF16, else float32.

    Args:
        device: device of the matmuls.
        precision: a type to use on any device; "auto" lets the device decide.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast or device.type == "cuda" else torch.float32


def native_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which matmuls run in the device's native type."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native_dtype(device) == torch.bfloat16)
