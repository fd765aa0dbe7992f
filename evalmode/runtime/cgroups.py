"""The cgroups that limit this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


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
