"""The CPUs that this process may use."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from evalmode.runtime.cgroups import list_cgroups


def count_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use: its affinity, limited by the quotas of its cgroups and their parents.

    Args:
        root: The root of the file system.

    Returns:
        At least 1.
    """
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quotas = (_read_quota(cgroup) for cgroup in list_cgroups("cpu", root))
    return max(1, min([available, *(quota for quota in quotas if quota)]))


def _read_quota(cgroup: Path) -> int | None:
    """Return the number of CPUs that a cgroup may use, rounded up; None if it has no quota."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
            return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
        except (OSError, ValueError):  # missing, or "max"
            continue
    return None
