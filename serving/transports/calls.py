"""The calls that a grpcio server has open: what each is doing, and for how long it may."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from functools import partial

import grpc.aio

from evalmode.errors import MessageLate, RequestError

log = logging.getLogger(__name__)

MAX_SENDING = 4096  # calls whose answer the client has not taken: each holds some 40 kB in grpc's core
# What a call is doing. IDLE: a stream between two requests, or a watch between two changes.
RECEIVING, RUNNING, SENDING, IDLE = "receiving", "running", "sending", "idle"


class OpenCall:
    """A call as the services see it (``serving.engine.batch.Call``), and what the transport knows of it.

    Attributes:
        path: Of its method.
        connection: The name of its connection, such as ``ipv4:10.0.0.7:51200``.
        state: What it is doing.
        since: Since when, by ``time.monotonic``.
        over: Whether it has ended.
        error: What it is to end with, once the reply in hand is sent.
    """

    __slots__ = ("_task", "_until", "connection", "error", "over", "path", "since", "state")

    def __init__(
        self, context: grpc.aio.ServicerContext, loop: asyncio.AbstractEventLoop, path: str, state: str
    ) -> None:
        remaining = context.time_remaining()
        self.path = path
        self.state, self.since = state, time.monotonic()
        self._until = threading.TIMEOUT_MAX if remaining is None else self.since + remaining
        self._task = asyncio.current_task(loop)  # without ``loop`` a system call finds it
        self.connection: str = context.peer()
        self.over = False
        self.error: RequestError | None = None

    def enter(self, state: str) -> None:
        """Note what the call is doing from now on."""
        self.state, self.since = state, time.monotonic()

    def end(self, error: RequestError) -> None:
        """End the call with an error: at once while it waits for its client, else after the reply in hand."""
        if self.error is None:
            self.error = error
            if self.state in (RECEIVING, IDLE) and self._task is not None:
                self._task.cancel()

    def time_remaining_s(self) -> float:
        """See ``serving.engine.batch.Call``."""
        return min(self._until - time.monotonic(), threading.TIMEOUT_MAX)

    def waited_s(self) -> float:
        """See ``serving.engine.batch.Call``."""
        return 0.0

    def cancelled(self) -> bool:
        """See ``serving.engine.batch.Call``."""
        return self.over


class Calls:
    """Counts the calls of a server by what they are doing, and ends those that take too long.

    Args:
        message_timeout_s: How long a message may take to arrive, and an answer to be taken.
    """

    def __init__(self, message_timeout_s: float) -> None:
        self._message_timeout_s = message_timeout_s
        self._open: dict[OpenCall, None] = {}

    def open(
        self, context: grpc.aio.ServicerContext, loop: asyncio.AbstractEventLoop, path: str, state: str = RECEIVING
    ) -> OpenCall:
        """Note a call, by its handler, until it has ended and its answer is taken.

        Args:
            context: Its context.
            loop: What its handler runs in.
            path: Of its method.
            state: What it is doing.
        """
        call = OpenCall(context, loop, path, state)
        self._open[call] = None
        if call._task is not None:
            call._task.add_done_callback(partial(self._forget, call))
        return call

    def count(self, *states: str) -> int:
        """How many calls are doing one of these."""
        return sum(call.state in states for call in list(self._open))

    def find_connections(self, message_bytes: int) -> tuple[dict[str, int], set[str]]:
        """By connection, the most that messages hold which have not come; and the connections with any call.

        Args:
            message_bytes: The most of one.
        """
        calls = list(self._open)
        waiting = Counter(call.connection for call in calls if call.state in (RECEIVING, IDLE))
        held = {connection: count * message_bytes for connection, count in waiting.items()}
        return held, {call.connection for call in calls}

    def sweep(self) -> dict[str, str]:
        """End what takes too long, and what is too much.

        Returns:
            Connections to close, each with the reason: a call whose answer is not taken cannot be ended otherwise.
        """
        calls = list(self._open)
        since = time.monotonic() - self._message_timeout_s
        for call in calls:
            if call.state == RECEIVING and call.since < since:
                call.end(MessageLate(f"no message came within {self._message_timeout_s:g} s: send it at once"))
        sending = [call for call in calls if call.state == SENDING]
        late = {call.connection for call in sending if call.since < since}
        reasons = dict.fromkeys(late, f"an answer was not taken within {self._message_timeout_s:g} s")
        if len(sending) > MAX_SENDING:
            ((greediest, count),) = Counter(call.connection for call in sending).most_common(1)
            reasons[greediest] = (
                f"{len(sending)} answers are not taken, the limit is {MAX_SENDING}; {count} of them here"
            )
        return reasons

    def _forget(self, call: OpenCall, task: object) -> None:
        call.over = True
        self._open.pop(call, None)
