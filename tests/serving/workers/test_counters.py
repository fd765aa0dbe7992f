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
LIMIT = 1000


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
    one.add("streams", 3)
    other.add("streams", 4)
    other.add("streams", -1)
    other.put("connections", 50)
    for counters in (one, other, SharedCounters(fd, 2)):
        assert [counters.total(name) for name in ("streams", "connections", "watches")] == [6, 50, 0]


def test_what_exceeds_a_limit_is_not_added(fd: int) -> None:
    one, other = (SharedCounters(fd, 2, worker) for worker in range(2))
    assert one.take("decode_bytes", 60, 100)
    assert not other.take("decode_bytes", 41, 100)
    assert one.total("decode_bytes") == 60
    assert other.take("decode_bytes", 40, 100)
    one.add("decode_bytes", -60)
    assert other.take("decode_bytes", 60, 100)
    assert not one.take("decode_bytes", 1, 100)


def test_a_limit_holds_for_processes_that_take_at_the_same_time(fd: int) -> None:
    code = f"print(sum(counters.take('streams', 1, {LIMIT}) for _ in range({2 * LIMIT})))"
    workers = [start_worker(fd, worker, code) for worker in range(2)]
    taken = sum(int(worker.communicate()[0]) for worker in workers)
    assert taken == SharedCounters(fd, 2).total("streams")
    assert LIMIT - 1 <= taken <= LIMIT  # two that take the last place at once may both be refused


def test_the_counters_of_a_worker_that_was_killed_are_cleared(fd: int) -> None:
    supervisor = SharedCounters(fd, 2)
    SharedCounters(fd, 2, 0).add("in_flight", 5)
    with start_worker(fd, 1, "counters.add('in_flight', 7); print('added', flush=True); input()") as worker:
        assert worker.stdout
        assert worker.stdout.readline() == "added\n"
        assert supervisor.total("in_flight") == 12
        worker.kill()
    assert worker.returncode == -signal.SIGKILL
    supervisor.clear(1)
    assert supervisor.total("in_flight") == 5


def test_a_worker_cannot_take_the_memory_from_the_others(fd: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
