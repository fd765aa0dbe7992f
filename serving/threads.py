"""Threads that all run before the first call comes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from evalmode.errors import ThreadsUnavailable

log = logging.getLogger(__name__)


def start_threads(count: int, name: str, work: Callable[[], None]) -> None:
    """Start threads that do not keep the process from ending.

    Args:
        count: How many.
        name: What their names begin with.
        work: What each does.

    Raises:
        ThreadsUnavailable: The system starts fewer.
    """
    for number in range(count):
        try:
            threading.Thread(target=work, name=f"{name}-{number}", daemon=True).start()
        except RuntimeError as error:
            raise ThreadsUnavailable(
                f"{count} {name} threads are needed and {number} could be started ({error}): raise the limit on "
                "processes or memory"
            ) from error


class Threads:
    """Threads that call functions, in the order in which they are given.

    Args:
        count: How many.
        name: What their names begin with.

    Raises:
        ThreadsUnavailable: The system starts fewer.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._given: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        start_threads(count, name, self._work)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in one of the threads; what it raises is logged."""
        self._given.put(function)

    def close(self) -> None:
        """End the threads once they have done what was given before."""
        for _ in range(self._count):
            self._given.put(None)

    def _work(self) -> None:
        while function := self._given.get():
            try:
                function()
            except Exception:
                log.exception("a call failed")
            del function  # else it would live until the next comes
