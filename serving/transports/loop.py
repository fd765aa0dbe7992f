"""The event loop of a grpcio server, in its own thread.

uvloop takes a fifth less time per request than asyncio's own loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import uvloop

from serving.threads import start_threads


class Loop:
    """Runs an asyncio event loop in a thread.

    Raises:
        ThreadsUnavailable: The system cannot start the thread.
    """

    def __init__(self) -> None:
        self.asyncio = uvloop.new_event_loop()
        self._posted: deque[Callable[[], object]] = deque()
        self._scheduled = False
        self._asked = self._seen = 0
        self.threads = start_threads(1, "event-loop", self.asyncio.run_forever)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop, and wait for its result. Call it from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.asyncio).result()

    def post(self, function: Callable[[], object]) -> None:
        """Call a function in the loop soon. Any thread may post; functions posted together wake the loop once.

        After ``close``, the function is not called.
        """
        self._posted.append(function)
        if not self._scheduled:
            self._scheduled = True
            with suppress(RuntimeError):  # the loop is closed
                self.asyncio.call_soon_threadsafe(self._call_posted)

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function in the loop after a delay. It can be called from any thread.

        Args:
            seconds: The delay.
            function: The function, which must not block.
        """
        self.post(partial(self.asyncio.call_later, seconds, function))

    def is_behind(self) -> bool:
        """Whether the loop has not completed an iteration since the previous call. Call it from one thread only."""
        behind = self._asked != self._seen
        if not behind:
            self._asked += 1
            self.post(partial(setattr, self, "_seen", self._asked))
        return behind

    def close(self) -> None:
        """End the loop and its thread."""
        self.asyncio.call_soon_threadsafe(self.asyncio.stop)
        while self.asyncio.is_running():
            time.sleep(0.001)
        self.asyncio.close()

    def _call_posted(self) -> None:
        self._scheduled = False
        while self._posted:
            self._posted.popleft()()
