"""The cgroups that limit this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def list_cgroups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's cgroups that may limit it, and of those around them, of v2 and of v1.

    Args:
        controller: What they limit: "cpu" or "memory".
        root: Of the file system.
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
            # In a container the path may be the host's: then its inner folders are not there, and the mount is its own.
            yield from (mount.joinpath(*inside[:depth]) for depth in range(len(inside) + 1))
