"""Threads that all run before the first call comes, for grpcio to run its handlers in."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from serving.errors import ThreadsUnavailable

log = logging.getLogger(__name__)

_Work = tuple[Callable[..., Any], tuple[Any, ...]]
_DONE: Future[None] = Future()
_DONE.set_result(None)


class Threads(ThreadPoolExecutor):
    """A pool whose threads are all started at once, and which neither locks nor starts anything when a call comes.

    ``ThreadPoolExecutor`` starts threads as calls come, on grpcio's polling thread: one that cannot be started ends
    that thread, and no call is ever answered again. It also joins its threads when the interpreter ends; these are
    daemons. The thread that was busy last is the next to get a call, as its stack is in the processor's caches. grpcio
    asks for the class by ``isinstance``.

    Args:
        count: How many.
        name: What their names begin with.

    Raises:
        ThreadsUnavailable: The system starts fewer.
    """

    def __init__(self, count: int, name: str) -> None:
        super().__init__(1)  # which starts no thread
        self._waiting: SimpleQueue[_Work] = SimpleQueue()  # what came while all were busy
        self._idle: deque[SimpleQueue[_Work]] = deque()  # where each idle thread waits
        self._count = 0
        for _ in range(count):
            try:
                threading.Thread(target=self._work, name=f"{name}-{self._count}", daemon=True).start()
            except RuntimeError as error:
                self.end()
                raise ThreadsUnavailable(
                    f"{count} {name} threads are needed and {self._count} could be started ({error}): raise the limit "
                    "on processes or memory, or lower --max-queue, --max-streams and --max-watches"
                ) from error
            self._count += 1

    def end(self) -> None:
        """End the threads, each once it is done with its call."""
        for _ in range(self._count):
            self.submit(_leave)

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[None]:  # type: ignore[override]
        """Run a function in one of the threads.

        Returns:
            A future that is done: grpcio only asks it to say so.
        """
        try:
            self._idle.pop().put((function, arguments))
        except IndexError:
            self._waiting.put((function, arguments))
        return _DONE

    def _work(self) -> None:
        own: SimpleQueue[_Work] = SimpleQueue()
        while True:
            try:
                function, arguments = self._waiting.get_nowait()
            except Empty:
                self._idle.append(own)
                if not self._waiting.empty():  # it came in between, and nobody was idle then
                    with suppress(ValueError):
                        self._idle.remove(own)
                        continue
                function, arguments = own.get()
            try:
                function(*arguments)
            except SystemExit:
                return
            except BaseException:
                log.exception("a handler of grpcio failed")
            del function, arguments  # else the last call would live until the next one comes


class Inline(ThreadPoolExecutor):
    """Runs what it is given in the thread that gives it: for refusals, which must cost next to nothing."""

    def __init__(self) -> None:
        super().__init__(1)  # which starts no thread

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[None]:  # type: ignore[override]
        """Run a function now; see ``Threads``."""
        function(*arguments)
        return _DONE


class Lane:
    """Threads for calls of one kind, and the right to one, which is taken and given back without a lock.

    Args:
        count: How many threads.
        name: What their names begin with.

    Attributes:
        threads: For grpcio.
        on_free: Called after each call that has given its thread back.

    Raises:
        ThreadsUnavailable: The system starts fewer.
    """

    def __init__(self, count: int, name: str) -> None:
        self.threads = Threads(count, name)
        self.on_free: Callable[[], object] = lambda: None
        self._count = count
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    @property
    def taken(self) -> int:
        """Calls that have a thread, or will have one at once."""
        return self._count - self._free.qsize()

    def is_scarce(self, reserved: int) -> bool:
        """Whether no more threads than these are free."""
        return self._free.qsize() <= reserved

    def take(self) -> bool:
        """Take the right to a thread, if one is free."""
        try:
            self._free.get_nowait()
        except Empty:
            return False
        return True

    def give_back(self) -> None:
        """The opposite of ``take``."""
        self._free.put(None)
        self.on_free()


def _leave() -> None:
    raise SystemExit
