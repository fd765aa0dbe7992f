"""Which call gets a thread while threads are scarce: that of the connection with the fewest calls that hold one.

Calls whose message does not come hold threads for as long as they may. Those that are too many are neither answered nor
refused, which would only bring the next ones: they wait, at the cost of some memory, until a thread is free or their
time has passed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from serving.transports.calls import OpenCall
from serving.transports.threads import Lane

log = logging.getLogger(__name__)

PATIENCE_S = 0.25  # a message that has not come by then may cost its call the thread, for one of the same connection
MAX_WAITING = 8192  # calls that wait for a thread: some 10 kB each


@dataclass(frozen=True)
class Arrival:
    """A call that waits for a thread.

    Attributes:
        call: Its state.
        run: What the thread does; gives the thread's place back at its end.
        refuse: What is done in its place if too many wait.
    """

    call: OpenCall
    run: Callable[[], None]
    refuse: Callable[[], None]


class Crowd:
    """Gives the last threads of a lane to calls by turns of their connections.

    Where none is left, a connection with few calls gets one of a connection with more whose message has not come: its
    oldest call is cancelled. Calls of one connection take turns among themselves: behind a proxy all are of one.

    Args:
        lane: The threads.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._events: SimpleQueue[Arrival | None] = SimpleQueue()
        self._waiting: dict[str, dict[Arrival, None]] = defaultdict(dict)  # by connection, the oldest first
        self._lock = threading.Lock()
        self._receiving: dict[str, dict[OpenCall, None]] = defaultdict(dict)  # the same, of calls that have a thread
        lane.on_free = self._wake
        threading.Thread(target=self._work, name="crowd", daemon=True).start()

    def enter(self, arrival: Arrival) -> None:
        """Let a call wait for a thread. Takes no lock."""
        self._events.put(arrival)

    def begin_receiving(self, call: OpenCall) -> None:
        """Note that a call has a thread and waits for its message."""
        with self._lock:
            self._receiving[call.connection][call] = None

    def end_receiving(self, call: OpenCall) -> None:
        """The opposite of ``begin_receiving``."""
        with self._lock:
            calls = self._receiving[call.connection]
            calls.pop(call, None)
            if not calls:
                del self._receiving[call.connection]

    def _wake(self) -> None:
        if self._waiting:
            self._events.put(None)

    def _work(self) -> None:
        while True:
            arrival = None
            with suppress(Empty):
                arrival = self._events.get(timeout=PATIENCE_S if self._waiting else None)
            try:
                if arrival is not None:
                    self._add(arrival)
                self._dispatch()
            except Exception:
                log.exception("a call could not be given a thread")

    def _add(self, arrival: Arrival) -> None:
        if sum(map(len, self._waiting.values())) >= MAX_WAITING:
            for connection in list(self._waiting):
                self._drop(connection, [one for one in self._waiting[connection] if one.call.over])
            if sum(map(len, self._waiting.values())) >= MAX_WAITING:
                self._lane.threads.submit(arrival.refuse)
                return
        self._waiting[arrival.call.connection][arrival] = None

    def _dispatch(self) -> None:
        """Give threads to calls that wait, for as long as there are any."""
        while self._waiting:
            connection = min(self._waiting, key=lambda one: len(self._receiving.get(one, ())))
            arrival = next(iter(self._waiting[connection]))
            if arrival.call.over:
                self._drop(connection, [arrival])
            elif self._lane.take():
                self._drop(connection, [arrival])
                self._lane.threads.submit(arrival.run)
            else:
                if victim := self._choose_victim(connection):
                    victim.cancel()  # its thread is free in a moment, which comes here as an event
                return

    def _choose_victim(self, connection: str) -> OpenCall | None:
        """The oldest call of the connection with the most, if that has two more than ``connection``, or is late."""
        with self._lock:
            if not self._receiving:
                return None
            calls = max(self._receiving.values(), key=len)
            oldest = next(iter(calls))
            unfair = len(calls) > len(self._receiving.get(connection, ())) + 1
            return oldest if unfair or time.monotonic() - oldest.since > PATIENCE_S else None

    def _drop(self, connection: str, arrivals: list[Arrival]) -> None:
        for arrival in arrivals:
            del self._waiting[connection][arrival]
        if not self._waiting[connection]:
            del self._waiting[connection]
