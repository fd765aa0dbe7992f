"""How much memory this process may use, and returning freed memory to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import NamedTuple

from evalmode.runtime.cgroups import list_memory

MIB = 1024 * 1024
MAX_DEFAULT_BYTES = 2048 * MIB
MIN_REQUEST_BYTES = 4 * MIB

# Source: malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


class MemoryLimit(NamedTuple):
    """A limit on memory.

    Attributes:
        limit_bytes: The limit in bytes.
        source: Where it comes from, for the log.
    """

    limit_bytes: int
    source: str


def read_memory_limit(root: Path = Path("/")) -> MemoryLimit:
    """Return the lowest memory limit of this process's cgroup and its parents, or the memory of the machine.

    Args:
        root: The root of the file system.
    """
    limits = [MemoryLimit(cgroup.limit_bytes, "the cgroup's limit") for cgroup in list_memory(root)]
    physical = MemoryLimit(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine's memory")
    return min([*limits, physical], key=lambda limit: limit.limit_bytes)


def choose_decode_bytes(wanted: int, root: Path = Path("/")) -> MemoryLimit:
    """Choose how much memory decoding may take.

    Args:
        wanted: ``max_decode_bytes``; 0: a quarter of the available memory, at most 2 GiB.
        root: The root of the file system.

    Returns:
        The limit and its source.
    """
    if wanted:
        return MemoryLimit(wanted, "--max-decode-bytes")
    limit_bytes, source = read_memory_limit(root)
    if limit_bytes // 4 > MAX_DEFAULT_BYTES:
        return MemoryLimit(MAX_DEFAULT_BYTES, f"at most 2 GiB of {source}, {limit_bytes // MIB} MiB")
    return MemoryLimit(limit_bytes // 4, f"a quarter of {source}, {limit_bytes // MIB} MiB")


def choose_request_bytes(largest: int, workers: int = 1, root: Path = Path("/")) -> MemoryLimit:
    """Choose the default limit on the size of a request.

    The limits on all messages together are multiples of it, and messages that clients send at the same time arrive
    before they can be refused.

    Args:
        largest: The limit where memory is plentiful, in bytes.
        workers: The number of processes that share the memory.
        root: The root of the file system.

    Returns:
        1/64 of the available memory for each worker, at least 4 MiB and at most ``largest``, and its source.
    """
    limit_bytes, source = read_memory_limit(root)
    chosen = min(largest, max(MIN_REQUEST_BYTES, limit_bytes // workers // 64))
    return MemoryLimit(chosen, f"{source} is {limit_bytes // MIB} MiB")


def return_large_blocks() -> None:
    """Make glibc return large blocks to the system as soon as they are freed. Does nothing elsewhere.

    By default glibc keeps blocks of up to 32 MiB in per-thread heaps once one of that size has been freed, so that the
    memory of large decoded images would stay resident. Small images are decoded within the blocks that are kept.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 * MIB)
        mallopt(_M_TRIM_THRESHOLD, 4 * MIB)
        mallopt(_M_ARENA_MAX, 4)
