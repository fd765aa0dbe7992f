"""How much memory this process may use, and giving back what it does not use any more."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import NamedTuple

from evalmode.runtime.cgroups import list_cgroups

MIB = 1024 * 1024
MAX_DEFAULT_BYTES = 2048 * MIB
MIN_REQUEST_BYTES = 4 * MIB
UNLIMITED_BYTES = 2**60  # a cgroup's v1 says so by a number about as large as there is

# Source: malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


class MemoryLimit(NamedTuple):
    """How much memory there is, in bytes, and what says so."""

    limit_bytes: int
    source: str


def read_memory_limit(root: Path = Path("/")) -> MemoryLimit:
    """The least of this process's cgroups' limits and of those around them, else what the machine has."""
    limits = [
        MemoryLimit(limit, "the cgroup's limit")
        for cgroup in list_cgroups("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _read_number(cgroup / name)) and limit < UNLIMITED_BYTES
    ]
    physical = MemoryLimit(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine's memory")
    return min([*limits, physical], key=lambda limit: limit.limit_bytes)


def choose_decode_bytes(wanted: int, root: Path = Path("/")) -> MemoryLimit:
    """How much memory decoding may take at once.

    Args:
        wanted: ``max_decode_bytes``; 0: a quarter of what there is, at most 2 GiB.
        root: of the file system.

    Returns:
        It, and where it comes from, for the log.
    """
    if wanted:
        return MemoryLimit(wanted, "--max-decode-bytes")
    limit_bytes, source = read_memory_limit(root)
    if limit_bytes // 4 > MAX_DEFAULT_BYTES:
        return MemoryLimit(MAX_DEFAULT_BYTES, f"at most 2 GiB of {source}, {limit_bytes // MIB} MiB")
    return MemoryLimit(limit_bytes // 4, f"a quarter of {source}, {limit_bytes // MIB} MiB")


def choose_request_bytes(most: int, root: Path = Path("/")) -> MemoryLimit:
    """How large a request may be, by default.

    The limits of all messages together are multiples of this one, and what clients send at once arrives before it can
    be refused.

    Args:
        most: Where there is memory enough.
        root: of the file system.

    Returns:
        A 64th of what there is, at least 4 MiB, at most ``most``; and where it comes from, for the log.
    """
    limit_bytes, source = read_memory_limit(root)
    chosen = min(most, max(MIN_REQUEST_BYTES, limit_bytes // 64))
    return MemoryLimit(chosen, f"{source} is {limit_bytes // MIB} MiB")


def return_large_blocks() -> None:
    """Have glibc give large blocks back to the system as soon as they are free; nothing elsewhere.

    Left alone, it keeps blocks of up to 32 MiB for later once one was freed, in a heap for each thread: decoded images
    that are gone would stay resident. Small images are decoded within what is kept.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 * MIB)
        mallopt(_M_TRIM_THRESHOLD, 4 * MIB)
        mallopt(_M_ARENA_MAX, 4)


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None
