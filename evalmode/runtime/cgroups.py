"""The cgroups that limit this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

UNLIMITED_BYTES = 2**60  # cgroup v1 reports no limit as a value near 2**63
MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # v2, v1
CACHE_KEYS = ("inactive_file", "total_inactive_file")  # v2, v1: pages of files that the system can drop


class MemoryCgroup(NamedTuple):
    """The memory of a cgroup.

    Attributes:
        limit_bytes: The limit.
        used_bytes: What its processes use, without the pages of files that the system can drop.
    """

    limit_bytes: int
    used_bytes: int


def list_memory(root: Path = Path("/")) -> Iterator[MemoryCgroup]:
    """Yield the memory of each cgroup that limits this process's.

    Args:
        root: The root of the file system.
    """
    for cgroup in list_cgroups("memory", root):
        for limit_file, used_file in MEMORY_FILES:
            limit = _read_number(cgroup / limit_file)
            if limit and limit < UNLIMITED_BYTES:
                used = (_read_number(cgroup / used_file) or 0) - _read_cache(cgroup / "memory.stat")
                yield MemoryCgroup(limit, max(0, used))


def list_cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the cgroups that limit this process, and of their parents, for cgroups v2 and v1.

    Args:
        controller: The controller, "cpu" or "memory".
        root: The root of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/", f"1:{controller}:/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / (controller if controllers else "")
            inside = [part for part in path.split("/") if part not in ("", "..")]
            # In a container the path may be the host's: its inner folders are missing, the mount is the container's.
            yield from (mount.joinpath(*inside[:depth]) for depth in range(len(inside) + 1))


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # missing, or "max"
        return None


def _read_cache(path: Path) -> int:
    """The bytes of file pages that a cgroup can drop; 0 if they are not stated."""
    try:
        facts = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return next((int(facts[key]) for key in CACHE_KEYS if key in facts), 0)
