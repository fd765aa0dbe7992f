"""Ctrl-C between two training steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C ended a training; the run keeps the best weights so far."""


@contextmanager
def delay_interrupts() -> Iterator[Callable[[], None]]:
    """Delay Ctrl-C until the next call of a function, or the end of the block; a second Ctrl-C takes effect at once.

    A KeyboardInterrupt while an event file is written can leave a lock held, for which closing the file would wait.
    Signals are handled in the main thread; in any other thread nothing is changed.

    Yields:
        A function that raises KeyboardInterrupt if Ctrl-C was pressed.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed after the last call.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, before)
