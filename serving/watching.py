"""Files that are read again when they change, and the thread that looks for a change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from evalmode.files import sign_file
from serving.threads import join_threads, start_threads

log = logging.getLogger(__name__)

POLL_S = 0.5
JOIN_S = 5.0  # for a call in progress to end


class WatchedFiles:
    """Detects that files have changed: by device, inode, size and modification time.

    Args:
        paths: The files. One that does not exist is reported once it does.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._signatures = [*map(sign_file, paths)]

    def changed(self) -> bool:
        """Whether any file has changed since the previous call or, on the first call, since construction."""
        before, self._signatures = self._signatures, [*map(sign_file, self._paths)]
        return self._signatures != before


class Poller:
    """Calls a function every ``POLL_S`` seconds in a daemon thread, so that a slow file system delays no request.

    Args:
        name: The prefix of the thread's name.
        poll: The function. An exception is logged, and the function is called again.

    Raises:
        ThreadsUnavailable: The system cannot start the thread.
    """

    def __init__(self, name: str, poll: Callable[[], None]) -> None:
        self._poll = poll
        self._stop = threading.Event()
        self._threads = start_threads(1, name, self._run)

    def close(self) -> None:
        """Stop calling the function, and wait ``JOIN_S`` at most for a call in progress."""
        self._stop.set()
        join_threads(self._threads, JOIN_S)

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self._poll()
            except Exception:
                log.exception("polling failed")
