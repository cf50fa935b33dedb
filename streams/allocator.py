"""The C allocator, told to give large arrays pages of their own."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["map_large_blocks"]

_M_MMAP_THRESHOLD = -3
"""glibc's malloc.h."""


def map_large_blocks(from_bytes: int = 1 << 20) -> bool:
    """Have every block from so many bytes on mapped by itself; False where the C library is not glibc.

    Left alone, glibc raises that limit to 32 MiB as large blocks are freed. Tables that grow then leave holes
    in the heap that nothing else fits into; mapped ones grow by moving pages, and give them back.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, from_bytes))
