"""Counters that processes share: a limit holds over all of them, and a process that is killed leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.workers.counters import SharedCounters, create_counters

ROOT = Path(__file__).parents[3]


@pytest.fixture
def fd() -> Iterator[int]:
    """The memory of two workers."""
    fd = create_counters(2)
    yield fd
    os.close(fd)


def start_worker(fd: int, worker: int, code: str) -> subprocess.Popen[str]:
    """Start a process that runs code with ``counters``, the counters of a worker."""
    head = f"from serving.workers.counters import SharedCounters; counters = SharedCounters({fd}, 2, {worker})\n"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", head + code], cwd=ROOT, pass_fds=[fd], stdin=pipe, stdout=pipe, text=True
    )


def test_a_total_is_the_sum_over_all_workers(fd: int) -> None:
    one, other = (SharedCounters(fd, 2, worker) for worker in range(2))
    one.put("streams", 3)
    other.put("streams", 4)
    other.put("streams", 3)
    other.put("connections", 50)
    for counters in (one, other, SharedCounters(fd, 2)):
        assert [counters.total(name) for name in ("streams", "connections", "watches")] == [6, 50, 0]


def test_the_counters_of_a_worker_that_was_killed_are_cleared(fd: int) -> None:
    supervisor = SharedCounters(fd, 2)
    SharedCounters(fd, 2, 0).put("in_flight", 5)
    with start_worker(fd, 1, "counters.put('in_flight', 7); print('put', flush=True); input()") as worker:
        assert worker.stdout
        assert worker.stdout.readline() == "put\n"
        assert supervisor.total("in_flight") == 12
        worker.kill()
    assert worker.returncode == -signal.SIGKILL
    supervisor.clear(1)
    assert supervisor.total("in_flight") == 5


def test_a_worker_cannot_take_the_memory_from_the_others(fd: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
