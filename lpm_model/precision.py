"""The type of products: bfloat16 where the device multiplies it natively, else float32.

A processor without bfloat16 instructions imitates them, a hundred times slower than float32 products.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def native_type(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """Type of the products on a device: bfloat16 on a GPU and on a CPU with AMX or AVX512-BF16, else float32.

    Args:
        device: where they are computed.
        precision: a type that is wanted whatever the device; "auto" leaves it to the device.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast or device.type == "cuda" else torch.float32


def products(device: torch.device) -> AbstractContextManager[None]:
    """A while in which products are computed in the device's own type."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native_type(device) == torch.bfloat16)
