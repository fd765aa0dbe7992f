"""Counters in memory that all workers of a server share, so that a limit holds for the whole server.

Each worker writes a row of its own, and a limit is compared with the sum over all rows. No lock is shared, so a worker
that is killed leaves nothing locked. The supervisor clears its row. Workers that take the last place at the same moment
all get it: the sum may exceed the limit by one for each worker, until places are given back.
"""

from __future__ import annotations

import fcntl
import mmap
import os

# What is counted, an int64 each.
COLUMNS = (
    "in_flight",  # requests admitted and not answered yet
    "slots_busy",
    "slots_awaited",  # 1 while something waits for a slot
    "large_slots_busy",
    "large_slots_awaited",
    "streams",
    "watches",
    "connections",
    "unfinished_bytes",  # received bytes of messages that are not complete
)
ITEM_BYTES = 8
LINE_BYTES = 64  # a cache line: a row is a multiple of it, so that workers on two cores do not write the same line
ROW = -(-len(COLUMNS) * ITEM_BYTES // LINE_BYTES) * LINE_BYTES // ITEM_BYTES  # items


def create_counters(workers: int) -> int:
    """Create the memory of the counters, all of them 0.

    Its size cannot be changed: a worker cannot take the memory from the others.

    Args:
        workers: The number of workers.

    Returns:
        A file descriptor, for ``SharedCounters``. It is not inherited; pass it to the workers.
    """
    fd = os.memfd_create("evalmode-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, workers * ROW * ITEM_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class SharedCounters:
    """The counters of all workers.

    One thread of a worker at a time may change a column: hold the lock of what is counted. All threads may read. Each
    value is read and written as a whole, since it is aligned.

    Args:
        fd: The memory, as ``create_counters`` returns it. It may be closed afterwards.
        workers: The number of workers.
        worker: The number of this worker, from 0. The supervisor, which counts nothing, passes any.
    """

    def __init__(self, fd: int, workers: int, worker: int = 0) -> None:
        items = memoryview(mmap.mmap(fd, workers * ROW * ITEM_BYTES)).cast("q")
        self._rows = [items[first : first + ROW] for first in range(0, len(items), ROW)]
        self._columns = {name: items[place::ROW] for place, name in enumerate(COLUMNS)}
        self._worker = worker

    def put(self, column: str, value: int) -> None:
        """Set a counter of this worker.

        Args:
            column: One of ``COLUMNS``.
            value: The value.
        """
        self._columns[column][self._worker] = value

    def total(self, column: str) -> int:
        """Return the sum of a counter over all workers.

        Args:
            column: One of ``COLUMNS``.
        """
        return sum(self._columns[column])

    def clear(self, worker: int) -> None:
        """Set all counters of a worker to 0. The supervisor does it when the process of the worker has ended.

        Args:
            worker: Its number.
        """
        row = self._rows[worker]
        for place in range(ROW):
            row[place] = 0
