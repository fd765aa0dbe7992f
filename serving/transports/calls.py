"""The calls that a grpcio server has open: what each is doing, and for how long it may."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

import grpc

from serving.errors import RequestError

log = logging.getLogger(__name__)

SWEEP_S = 0.25
MAX_SENDING = 4096  # calls whose answer the client has not taken: each holds some 40 kB in grpc's core
# What a call is doing. IDLE: a stream between two requests, or a watch between two changes.
RECEIVING, RUNNING, SENDING, IDLE = "receiving", "running", "sending", "idle"


class OpenCall:
    """A call as the services see it (``serving.batch.Call``), and what the transport knows of it.

    Attributes:
        connection: The name of its connection, such as ``ipv4:10.0.0.7:51200``.
        state: What it is doing.
        since: Since when, by ``time.monotonic``.
        over: Whether it has ended.
    """

    __slots__ = ("_context", "_open", "_wake", "connection", "over", "since", "state")

    def __init__(self, context: grpc.ServicerContext, open_calls: dict[OpenCall, None], state: str) -> None:
        self._context = context
        self._open = open_calls
        self._wake: Callable[[], object] | None = None
        self.connection: str = context.peer()
        self.over = False
        self.enter(state)
        open_calls[self] = None
        if not context.add_callback(self._end):
            self._end()

    def enter(self, state: str) -> None:
        """Note what the call is doing from now on."""
        self.state, self.since = state, time.monotonic()

    def cancel(self) -> None:
        """End the call: its client sees CANCELLED."""
        self._context.cancel()

    def evict(self, error: RequestError) -> None:
        """See ``serving.transports.places``: its thread waits for a message, so no status can be sent."""
        self.cancel()

    def time_remaining_s(self) -> float:
        """See ``serving.batch.Call``."""
        remaining = self._context.time_remaining()
        return threading.TIMEOUT_MAX if remaining is None else min(remaining, threading.TIMEOUT_MAX)

    def waited_s(self) -> float:
        """See ``serving.batch.Call``."""
        return 0.0

    def cancelled(self) -> bool:
        """See ``serving.batch.Call``."""
        return self.over

    def wake_on_cancel(self, wake: Callable[[], object]) -> None:
        """See ``serving.batch.Call``; of a stream's requests only the one that runs now is woken."""
        self._wake = wake
        if self.over:
            wake()

    def _end(self) -> None:
        """Runs on grpcio's polling thread: no lock, nothing that waits."""
        self.over = True
        self._open.pop(self, None)
        if self._wake is not None:
            self._wake()


class Calls:
    """Counts the calls of a server by what they are doing, and ends those that take too long.

    Args:
        message_timeout_s: How long a message may take to arrive, and an answer to be taken.
    """

    def __init__(self, message_timeout_s: float) -> None:
        self._message_timeout_s = message_timeout_s
        self._open: dict[OpenCall, None] = {}
        self._stop = threading.Event()

    def start(self, each_time: Callable[[], object]) -> None:
        """Look for calls that take too long, in a thread.

        Args:
            each_time: What else is to be done at each look.
        """
        threading.Thread(target=self._watch, args=(each_time,), name="calls", daemon=True).start()

    def stop(self) -> None:
        """The opposite of ``start``."""
        self._stop.set()

    def open(self, context: grpc.ServicerContext, state: str = RECEIVING) -> OpenCall:
        """Note a call until it has ended, its answer taken."""
        return OpenCall(context, self._open, state)

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

    def sweep(self) -> None:
        """End what takes too long, and what is too much."""
        calls = list(self._open)
        since = time.monotonic() - self._message_timeout_s
        late = [call for call in calls if call.state in (RECEIVING, SENDING) and call.since < since]
        sending = [call for call in calls if call.state == SENDING]
        excess = _choose_greediest(sending, len(sending) - MAX_SENDING)
        for call in {*late, *excess}:
            log.debug("call ended after %.3g s of %s: %s", time.monotonic() - call.since, call.state, call.connection)
            call.cancel()

    def _watch(self, each_time: Callable[[], object]) -> None:
        while not self._stop.wait(SWEEP_S):
            try:
                self.sweep()
                each_time()
            except Exception:
                log.exception("calls could not be looked at")


def _choose_greediest(calls: Iterable[OpenCall], count: int) -> list[OpenCall]:
    """So many calls, each time the oldest of the connection that has the most."""
    by_connection: dict[str, deque[OpenCall]] = defaultdict(deque)
    for call in calls:
        by_connection[call.connection].append(call)
    return [max(by_connection.values(), key=len).popleft() for _ in range(count)]
