"""Places for calls that hold memory while they wait: bounded in all, and shared fairly between connections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from evalmode.errors import RequestError
from serving.transports.calls import OpenCall


class Places:
    """Places of which each call of one kind holds one. For the thread of the event loop alone.

    When all are taken, the connection that holds the most gives back its oldest: a client with many calls does not
    keep out one with few.

    Args:
        limit: How many there are.
        make_error: Makes the error of a call that gets no place, or loses it.
    """

    def __init__(self, limit: int, make_error: Callable[[], RequestError]) -> None:
        self._limit = limit
        self._make_error = make_error
        self._held: dict[str, dict[OpenCall, None]] = defaultdict(dict)  # by connection, the oldest first
        self.taken = 0

    def enter(self, call: OpenCall) -> None:
        """Take a place.

        Raises:
            RequestError: The connection of the call itself holds the most.
        """
        if self.taken >= self._limit:
            self._evict(call.connection)
        self._held[call.connection][call] = None
        self.taken += 1

    def leave(self, call: OpenCall) -> None:
        """Give the place back, if the call still has it."""
        held = self._held.get(call.connection, {})
        if call in held:
            del held[call]
            self.taken -= 1
            if not held:
                del self._held[call.connection]

    def list_calls(self) -> list[OpenCall]:
        """The calls that hold a place."""
        return [call for held in self._held.values() for call in held]

    def _evict(self, connection: str) -> None:
        """Free a place for a call of ``connection``."""
        most = max(self._held.values(), key=len)
        if len(most) <= len(self._held.get(connection, ())) + 1:
            raise self._make_error()
        victim = next(iter(most))
        self.leave(victim)
        victim.end(self._make_error())
