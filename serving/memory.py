"""The C library's allocator, told to give large blocks back when they are freed."""

from __future__ import annotations

import ctypes

# Of mallopt, in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
LARGE_BYTES = 4 * 2**20  # blocks of this size are mapped, and unmapped when they are freed
ARENAS = 4  # threads share them; by default there are 8 a core, each of which keeps what was freed in it


def give_back_large_blocks() -> None:
    """Set it up for a server, whose largest messages and images come rarely: once, before it has threads.

    glibc raises its own threshold to 32 MiB as large blocks are freed, and keeps what is smaller. Other C libraries
    are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(_M_TRIM_THRESHOLD, LARGE_BYTES)
    mallopt(_M_ARENA_MAX, ARENAS)
