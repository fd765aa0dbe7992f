"""Liveness: whether a server still answers, by checks of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from serving.threads import start_threads

log = logging.getLogger(__name__)

CHECK_S = 5.0  # between two checks, and the deadline of each
LATE_S = 20.0  # the server is not alive if the last answer is older


class Liveness:
    """Checks every ``CHECK_S`` seconds in a thread, and records the time of the last answer.

    Args:
        check: Returns for how many seconds the server has not answered, such as 0.0 if it answers now; None if it does
            not answer within the given number of seconds.
    """

    def __init__(self, check: Callable[[float], float | None]) -> None:
        self._check = check
        self._answered = time.monotonic()
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the thread.

        Raises:
            ThreadsUnavailable: The system cannot start it.
        """
        start_threads(1, "liveness", self._watch)

    def close(self) -> None:
        """Stop checking."""
        self._stop.set()

    def silent_s(self) -> float:
        """Seconds since the last answer, or since construction if there was none."""
        return time.monotonic() - self._answered

    def is_alive(self) -> bool:
        """Whether the last answer is recent enough."""
        return self.silent_s() < LATE_S

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                silent_s = self._check(CHECK_S)
                if silent_s is not None:
                    self._answered = time.monotonic() - silent_s
            except Exception:
                log.exception("the health of the server could not be checked")
            self._stop.wait(CHECK_S)
