"""A limit on calls that take memory while they wait, shared fairly between connections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from evalmode.errors import RequestError
from serving.engine.shared_limits import Count
from serving.transports.calls import OpenCall


class Places:
    """Places for calls of one kind. Use it in the thread of the event loop only.

    If all places are taken, the connection with the most calls loses its oldest one, so that a client with many calls
    does not keep out a client with few.

    Args:
        limit: The number of places.
        make_error: Returns the error of a call that gets no place or loses it.
        count: The places that are taken in all workers.

    Attributes:
        taken: The number of calls that hold a place.
    """

    def __init__(self, limit: int, make_error: Callable[[], RequestError], count: Count | None = None) -> None:
        self._limit = limit
        self._count = count
        self._make_error = make_error
        self._held: dict[str, dict[OpenCall, None]] = defaultdict(dict)  # by connection, the oldest first
        self.taken = 0

    def enter(self, call: OpenCall) -> None:
        """Take a place for a call.

        Raises:
            RequestError: All places are taken, and no connection has more calls than that of this call.
        """
        if self.taken + (self._count.elsewhere() if self._count else 0) >= self._limit:
            self._evict(call.connection)
        self._held[call.connection][call] = None
        self._change(1)

    def leave(self, call: OpenCall) -> None:
        """Release the place of a call, if it still holds one."""
        held = self._held.get(call.connection, {})
        if call in held:
            del held[call]
            self._change(-1)
            if not held:
                del self._held[call.connection]

    def list_calls(self) -> list[OpenCall]:
        """The calls that hold a place."""
        return [call for held in self._held.values() for call in held]

    def _change(self, by: int) -> None:
        self.taken += by
        if self._count:
            self._count.put(self.taken)

    def _evict(self, connection: str) -> None:
        """End the oldest call of the connection with the most, to make room for a call of ``connection``."""
        most = max(self._held.values(), key=len, default={})  # other workers may hold all places
        if len(most) <= len(self._held.get(connection, ())) + 1:
            raise self._make_error()
        victim = next(iter(most))
        self.leave(victim)
        victim.end(self._make_error())
