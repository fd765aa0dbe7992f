"""Whether the pixels of a data set fit into memory."""

from __future__ import annotations

import math
from pathlib import Path

import psutil

from evalmode.errors import DataError


def check_memory(shape: tuple[int, ...]) -> None:
    """Check, before anything is decoded, that uint8 pixels of a shape fit into memory.

    Args:
        shape: The shape of the array.

    Raises:
        DataError: The array is larger than the available memory.
    """
    needed, available = math.prod(shape), available_memory_bytes()
    if needed > available:
        raise DataError(
            f"{' x '.join(map(str, shape))} pixels need {needed:,} bytes of memory and {available:,} are available: "
            "choose a smaller --image-size or fewer images"
        )


def available_memory_bytes(cgroup_limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Measure the memory that is available without swapping.

    Args:
        cgroup_limit: The file that holds the container's memory limit; it may be missing or hold "max".

    Returns:
        The available bytes, at most the container's limit.
    """
    available = int(psutil.virtual_memory().available)
    try:
        return min(available, int(cgroup_limit.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return available
