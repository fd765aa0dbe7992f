"""Daemon threads that are all running before the first call arrives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue

from evalmode.errors import ThreadsUnavailable

log = logging.getLogger(__name__)


def start_threads(count: int, name: str, work: Callable[[], None]) -> list[threading.Thread]:
    """Start daemon threads.

    Args:
        count: The number of threads.
        name: The prefix of their names.
        work: The function that each of them runs.

    Returns:
        The running threads.

    Raises:
        ThreadsUnavailable: The system cannot start as many.
    """
    threads: list[threading.Thread] = []
    for number in range(count):
        thread = threading.Thread(target=work, name=f"{name}-{number}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise ThreadsUnavailable(
                f"{count} {name} threads are needed and {number} could be started ({error}): raise the limit on "
                "processes or memory"
            ) from error
        threads.append(thread)
    return threads


def join_threads(threads: Iterable[threading.Thread], timeout_s: float) -> None:
    """Wait until threads have ended.

    Args:
        threads: The threads. Those that were never started are skipped.
        timeout_s: The time to wait for all of them, in seconds.
    """
    until = time.monotonic() + timeout_s
    for thread in threads:
        if thread.is_alive():
            thread.join(max(0.0, until - time.monotonic()))


class Threads:
    """A pool of threads that run functions in the order of submission.

    Args:
        count: The number of threads.
        name: The prefix of their names.

    Attributes:
        threads: The threads.

    Raises:
        ThreadsUnavailable: The system cannot start as many.
    """

    def __init__(self, count: int, name: str) -> None:
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.threads = start_threads(count, name, self._work)

    def call(self, function: Callable[[], object]) -> None:
        """Run a function in one of the threads. Its exceptions are logged."""
        self._queue.put(function)

    def close(self) -> None:
        """End the threads after the functions that were submitted before."""
        for _ in self.threads:
            self._queue.put(None)

    def _work(self) -> None:
        while function := self._queue.get():
            try:
                function()
            except Exception:
                log.exception("a call failed")
            del function  # otherwise it would be kept alive until the next one is submitted
