"""The device, dtype and free memory of this machine."""

from __future__ import annotations

import psutil
import torch

__all__ = ["MEMORY_BYTES", "available_bytes", "best_device", "best_dtype", "free_bytes"]

MEMORY_SHARE = 0.5  # share of free memory for keys, or for what a backward pass keeps
MEMORY_BYTES = 9 * 2**28  # more makes nothing faster on a CPU


def free_bytes(device: torch.device) -> int:
    """The memory that one wave or one backward pass may take, by what is free now."""
    share = int(MEMORY_SHARE * available_bytes(device))
    return share if device.type == "cuda" else min(MEMORY_BYTES, share)


def available_bytes(device: torch.device) -> int:
    """Memory that is free now, on the device or in the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def best_device() -> str:
    """CUDA or Apple's MPS if there is one, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if capable else torch.float32
    return torch.float32
