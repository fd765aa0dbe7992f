"""The open calls of a grpcio server: the state of each, and timeouts."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from functools import partial

import grpc.aio

from evalmode.errors import MessageLate, RequestError

log = logging.getLogger(__name__)

MAX_SENDING = 4096  # calls whose reply the client has not read yet: each takes about 40 kB in grpc's core
# The states of a call. IDLE: a stream between two requests, or a watch between two changes.
RECEIVING, RUNNING, SENDING, IDLE = "receiving", "running", "sending", "idle"


class OpenCall:
    """A call: for the services a ``serving.engine.call.Call``, for the transport its state.

    Args:
        context: The context of its handler.
        loop: The event loop in which the handler runs.
        path: The full name of its method, ``/package.Service/Method``.
        state: Its first state.

    Attributes:
        path: The full name of its method.
        arrived: When it arrived, by ``time.monotonic``; of a stream, its newest request.
        deadline: Its deadline; ``math.inf`` if it has none.
        connection: The name of its connection, such as ``ipv4:10.0.0.7:51200``.
        state: Its state.
        since: When it entered the state, by ``time.monotonic``.
        over: Whether the call has ended.
        error: The error that ends the call once the reply in progress is sent; None if it may go on.
    """

    __slots__ = ("_task", "arrived", "connection", "deadline", "error", "over", "path", "since", "state")

    def __init__(
        self, context: grpc.aio.ServicerContext, loop: asyncio.AbstractEventLoop, path: str, state: str
    ) -> None:
        remaining = context.time_remaining()
        self.path = path
        self.arrived = self.since = time.monotonic()
        self.state = state
        self.deadline = math.inf if remaining is None else self.arrived + remaining
        self._task = asyncio.current_task(loop)  # without ``loop`` it takes a system call
        self.connection: str = context.peer()
        self.over = False
        self.error: RequestError | None = None

    def enter(self, state: str) -> None:
        """Change the state."""
        self.state, self.since = state, time.monotonic()

    def begin_request(self) -> None:
        """Begin the next request of a stream, whose time counts from now."""
        self.enter(RUNNING)
        self.arrived = self.since

    def end(self, error: RequestError) -> None:
        """End the call with an error: at once if it waits for its client, otherwise after the reply in progress."""
        if self.error is None:
            self.error = error
            if self.state in (RECEIVING, IDLE) and self._task is not None:
                self._task.cancel()

    def cancelled(self) -> bool:
        """See ``serving.engine.call.Call``."""
        return self.over


class Calls:
    """Counts the calls of a server by state, and ends calls that take too long.

    Args:
        message_timeout_s: Seconds that a message may take to arrive, and that a client may take to read a reply.
    """

    def __init__(self, message_timeout_s: float) -> None:
        self._message_timeout_s = message_timeout_s
        self._open: dict[OpenCall, None] = {}

    def open(
        self, context: grpc.aio.ServicerContext, loop: asyncio.AbstractEventLoop, path: str, state: str = RECEIVING
    ) -> OpenCall:
        """Record a call until it has ended and the client has read its reply. Its handler calls this.

        Args:
            context: The context of the handler.
            loop: The event loop in which the handler runs.
            path: The full name of the method.
            state: The first state of the call.
        """
        call = OpenCall(context, loop, path, state)
        self._open[call] = None
        if call._task is not None:
            call._task.add_done_callback(partial(self._forget, call))
        return call

    def count(self, *states: str) -> int:
        """The number of calls in any of these states."""
        return sum(call.state in states for call in list(self._open))

    def find_connections(self, message_bytes: int) -> tuple[dict[str, int], set[str]]:
        """Find the connections with open calls.

        Args:
            message_bytes: The maximum size of a message.

        Returns:
            The maximum size of all messages that have not arrived yet, by connection; and all connections with a call.
        """
        calls = list(self._open)
        waiting = Counter(call.connection for call in calls if call.state in (RECEIVING, IDLE))
        held = {connection: count * message_bytes for connection, count in waiting.items()}
        return held, {call.connection for call in calls}

    def sweep(self) -> dict[str, str]:
        """End calls whose message is late, and find connections whose client reads no replies.

        Returns:
            The connections to close, each with the reason. A call whose reply is not read cannot be ended otherwise.
        """
        calls = list(self._open)
        since = time.monotonic() - self._message_timeout_s
        for call in calls:
            if call.state == RECEIVING and call.since < since:
                call.end(MessageLate(f"no message arrived within {self._message_timeout_s:g} s: send it at once"))
        sending = [call for call in calls if call.state == SENDING]
        late = {call.connection for call in sending if call.since < since}
        reasons = dict.fromkeys(late, f"the client did not read a reply within {self._message_timeout_s:g} s")
        if len(sending) > MAX_SENDING:
            ((greediest, count),) = Counter(call.connection for call in sending).most_common(1)
            reasons[greediest] = (
                f"{len(sending)} replies have not been read, the limit is {MAX_SENDING}; {count} are on this connection"
            )
        return reasons

    def _forget(self, call: OpenCall, task: object) -> None:
        call.over = True
        self._open.pop(call, None)
