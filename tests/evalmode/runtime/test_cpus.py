"""The number of CPUs that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evalmode.runtime.cpus import count_cpus


def write_files(root: Path, texts: dict[str, str]) -> None:
    """Write files below a folder."""
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


class TestCountCpus:
    @pytest.fixture(autouse=True)
    def eight_cpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))

    @pytest.mark.parametrize(
        ("limit", "cpus"),
        [
            ("50000 100000\n", 1),
            ("100000 100000\n", 1),
            ("150000 100000\n", 2),
            ("400000 100000\n", 4),
            ("1600000 100000\n", 8),
            ("max 100000\n", 8),
            ("garbage\n", 8),
            ("", 8),
        ],
    )
    def test_is_limited_to_the_quota_of_cgroup_v2(self, tmp_path: Path, limit: str, cpus: int) -> None:
        write_files(tmp_path, {"sys/fs/cgroup/cpu.max": limit})
        assert count_cpus(tmp_path) == cpus

    @pytest.mark.parametrize(("quota", "cpus"), [("50000", 1), ("250000", 3), ("-1", 8), ("900000", 8)])
    def test_is_limited_to_the_quota_of_cgroup_v1(self, tmp_path: Path, quota: str, cpus: int) -> None:
        folder = "sys/fs/cgroup/cpu"
        write_files(tmp_path, {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000\n"})
        assert count_cpus(tmp_path) == cpus

    @pytest.mark.parametrize(
        ("quotas", "cpus"),
        [
            ({"a/b": "200000 100000"}, 2),
            ({"a": "200000 100000"}, 2),
            ({"": "300000 100000", "a": "200000 100000", "a/b": "max 100000"}, 2),
            ({"": "300000 100000", "a": "max 100000", "a/b": "500000 100000"}, 3),
            ({"other": "100000 100000"}, 8),
        ],
    )
    def test_is_limited_to_the_smallest_quota_of_all_parents(
        self, tmp_path: Path, quotas: dict[str, str], cpus: int
    ) -> None:
        files = {f"sys/fs/cgroup/{path}/cpu.max": quota for path, quota in quotas.items()}
        write_files(tmp_path, {"proc/self/cgroup": "0::/a/b\n", **files})
        assert count_cpus(tmp_path) == cpus

    @pytest.mark.parametrize("folder", ["a/b", "a", ""])  # the last: a container that sees the path of the host
    def test_is_limited_to_the_quota_of_the_parents_in_cgroup_v1(self, tmp_path: Path, folder: str) -> None:
        cgroups = "5:memory:/x\n4:cpu,cpuacct:/a/b\n2:cpuset:/\n0::/a\n"
        files = {f"sys/fs/cgroup/cpu/{folder}/cpu.cfs_{name}_us": us for name, us in (("quota", "2"), ("period", "1"))}
        write_files(tmp_path, {"proc/self/cgroup": cgroups, **files})
        assert count_cpus(tmp_path) == 2

    def test_without_a_cgroup_is_the_affinity(self, tmp_path: Path) -> None:
        assert count_cpus(tmp_path) == 8


def test_this_process_has_at_least_one_cpu() -> None:
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)
