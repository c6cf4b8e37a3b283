"""How this process keeps the memory that tensors leave behind.

glibc hands large blocks back to the system at once and gets them anew for the next tensor, page by
page, each zeroed by the kernel: on a CPU that took up to a third of an update. Here the process
keeps what it once had, until `give_back`. Not here: how much memory a model or a step may take.
"""

from __future__ import annotations

import ctypes
import functools
import sys

__all__ = ["give_back", "keep"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_BYTES = 2**25  # of a block that is kept; glibc takes no higher bound
KEPT_BYTES = 2**31 - 1


@functools.cache
def _libc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version") else None


def keep() -> None:
    """From now on, keep freed blocks for the next tensors; nothing where there is no glibc."""
    if (libc := _libc()) is not None:
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def give_back() -> None:
    """Return to the system what is free."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)
