"""Runs the handlers of management calls (metadata, repository) in threads, because they may block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from serving.engine.call import Call
from serving.threads import Threads
from serving.transports.calls import OpenCall
from serving.transports.loop import Loop
from serving.transports.messages import Messages
from serving.transports.outcomes import resolve, serialize
from serving.transports.receiving import make_calls_full

MAX_CONTROLS = 64  # calls that run or wait for a thread

Handler: TypeAlias = Callable[[Any, Call], Any]


class Controls:
    """Runs handlers in threads. Use it in the thread of the event loop only.

    Args:
        loop: The event loop.
        messages: Limits the memory of messages.
        threads: The threads.

    Attributes:
        running: The number of calls that run or wait for a thread.
    """

    def __init__(self, loop: Loop, messages: Messages, threads: Threads) -> None:
        self._loop = loop
        self._messages = messages
        self._threads = threads
        self.running = 0

    async def run(
        self, parse: Callable[[bytes], Any], handler: Handler, message: bytes, call: OpenCall
    ) -> bytes | Exception:
        """Run a handler.

        Args:
            parse: Parses the message.
            handler: The handler.
            message: The message of the call.
            call: The call.

        Returns:
            The serialized reply, or the error.

        Raises:
            MessagesFull: Other messages take too much memory.
        """
        if self.running >= MAX_CONTROLS:
            return make_calls_full()
        held = self._messages.hold(message)
        future: asyncio.Future[Any] = self._loop.asyncio.create_future()

        def work() -> None:
            try:
                outcome: Any = serialize(handler(self._messages.parse(parse, message, held), call))
            except Exception as error:
                outcome = error
            self._loop.post(partial(end, outcome))

        def end(outcome: Any) -> None:
            self.running -= 1
            self._messages.free(held)
            resolve(future, outcome)

        self.running += 1
        self._threads.call(work)
        return await future  # type: ignore[no-any-return]
