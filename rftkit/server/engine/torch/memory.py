"""How this process keeps the memory that tensors leave behind.

glibc returns large blocks to the system immediately and requests them again for the next tensor,
page by page, each zeroed by the kernel. On a CPU that took up to a third of an update. Here the
process keeps what it once had, until `give_back`, in huge pages where the kernel offers them: far
fewer faults, and addresses that the processor looks up faster. Not here: how much memory a model or
a step may take.
"""

from __future__ import annotations

import ctypes
import functools
import sys

__all__ = ["give_back", "keep"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
MADV_HUGEPAGE = 14  # sys/mman.h
HEAP_BYTES = 2**32  # only address space, until it is used
HUGE_BYTES = 2**21


@functools.cache
def _libc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")):
        return None
    libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_size_t
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    return libc


def keep() -> None:
    """From now on, keep freed blocks for the next tensors; without glibc, do nothing."""
    if (libc := _libc()) is None:
        return
    libc.mallopt(M_MMAP_MAX, 0)  # large blocks too come from the heap
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # and never shrink the heap
    # The heap grows at once as far as it is likely to: each growth is a region of its own.
    start = libc.sbrk(0)
    libc.free(libc.malloc(HEAP_BYTES))
    start, end = -(-start // HUGE_BYTES) * HUGE_BYTES, libc.sbrk(0)
    if end > start:
        libc.madvise(
            start, end - start, MADV_HUGEPAGE
        )  # harmless if the kernel does not support it


def give_back() -> None:
    """Return to the system what is free."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)
