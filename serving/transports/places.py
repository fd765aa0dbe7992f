"""Places for calls that hold a thread or memory: bounded in all, and shared fairly between connections."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from serving.errors import RequestError


class Holder(Protocol):
    """A call that holds a place.

    Attributes:
        connection: What its connection is called, such as ``ipv4:10.0.0.7:51200``.
    """

    connection: str

    def evict(self, error: RequestError) -> None:
        """End the call, from another thread, to free its place; ``error`` says why, where that can still be sent."""


Call = TypeVar("Call", bound=Holder)


class Places(Generic[Call]):
    """Places of which each call of one kind holds one.

    When all are taken, the connection that holds the most gives back its oldest: a client with many calls does not
    keep out one with few.

    Args:
        limit: How many there are.
        full: Makes what a call is refused with where its own connection holds the most.
    """

    def __init__(self, limit: int, full: Callable[[], RequestError]) -> None:
        self._limit = limit
        self._full = full
        self._lock = threading.Lock()
        self._held: dict[Call, None] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def hold(self, call: Call) -> Iterator[None]:
        """Hold a place. Not for grpcio's polling thread: it takes a lock.

        Raises:
            RequestError: What ``full`` makes.
        """
        with self._lock:
            victim = self._choose_victim(call.connection) if len(self._held) >= self._limit else None
            if victim is not None:
                del self._held[victim]
            self._held[call] = None
        if victim is not None:
            victim.evict(self._full())
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(call, None)

    def list_holders(self) -> list[Call]:
        """The calls that hold a place, the oldest first."""
        with self._lock:
            return list(self._held)

    def _choose_victim(self, connection: str) -> Call:
        """The call that gives its place to one of ``connection``."""
        counts = Counter(call.connection for call in self._held)
        greediest, most = counts.most_common(1)[0]
        if most > counts[connection] + 1:
            return next(call for call in self._held if call.connection == greediest)
        raise self._full()
