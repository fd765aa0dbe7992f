"""The processes of the workers of a server, for benchmarks and tests."""

from __future__ import annotations

import re
from pathlib import Path


def find_workers(supervisor: int) -> list[int]:
    """The processes of the workers, the oldest first.

    Args:
        supervisor: The process that has started them.
    """
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = re.search(r"^PPid:\s+(\d+)$", status.read_text(), re.M)
            command = (status.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if parent and int(parent[1]) == supervisor and b"serving.workers.worker" in command:
            found.append(int(status.parent.name))
    return sorted(found)
