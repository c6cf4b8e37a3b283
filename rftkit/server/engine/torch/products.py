"""Products of matrices on a CPU, by the faster of two libraries: MKL or oneDNN.

torch takes MKL for float32, which packs the weights again in each product. oneDNN multiplies by
weights that were packed beforehand. Each of its calls takes longer to begin, so small matrices are
left to MKL. All of this is without autograd. Not here: which weights are packed, and for how long
(`lora.Block`).
"""

from __future__ import annotations

import functools
import platform
from typing import cast

import torch
from torch.nn import functional

__all__ = ["is_packable", "linear", "pack"]

LEAST_NUMBERS = 2**18
"""In a float32 matrix that oneDNN multiplies faster than MKL."""


def is_packable(weight: torch.Tensor) -> bool:
    """Whether oneDNN multiplies by a packed form of this weight, and is the faster one."""
    if not weight.is_cpu or not _has_products(weight.dtype):
        return False
    return weight.dtype == torch.bfloat16 or weight.numel() >= LEAST_NUMBERS


@functools.cache
def _has_products(dtype: torch.dtype) -> bool:
    """In bfloat16 a processor needs instructions for it. In float32 oneDNN was measured on x86."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and platform.machine().lower() in ("x86_64", "amd64")


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A packed copy of a weight (out, in)."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 64)
    return cast(torch.Tensor, packed)


def linear(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The linear layer's product of rows (N, in); the weight (out, in) may be packed."""
    # oneDNN is fast for weights without gaps; a part of a wider matrix took it 100 times as long.
    is_fast = weight.dtype == torch.float32 and weight.is_contiguous() and is_packable(weight)
    if weight.is_mkldnn or is_fast:
        y = torch.ops.mkldnn._linear_pointwise(rows, weight.detach(), bias, "none", [], "")
        return cast(torch.Tensor, y)
    return functional.linear(rows, weight, bias)
