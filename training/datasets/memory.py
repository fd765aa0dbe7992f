"""Whether the pixels of a data set fit into memory."""

from __future__ import annotations

import math
from pathlib import Path

import psutil

from evalmode.errors import DataError
from evalmode.runtime.cgroups import list_memory


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


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Measure the memory that is available without swapping.

    Args:
        root: The root of the file system.

    Returns:
        The available bytes of the machine, or what is left of the limit of a container, whichever is less.
    """
    left = [max(0, cgroup.limit_bytes - cgroup.used_bytes) for cgroup in list_memory(root)]
    return min([int(psutil.virtual_memory().available), *left])
