"""One counter in the memory that all workers share, as limits use it."""

from __future__ import annotations

from serving.workers.counters import SharedCounters


class SharedCount:
    """The ``Count`` of a worker.

    Args:
        counters: The counters of all workers.
        name: The name of this one, of ``COLUMNS``.
    """

    def __init__(self, counters: SharedCounters, name: str) -> None:
        self._counters = counters
        self._name = name
        self._mine = 0

    def put(self, mine: int) -> None:
        """See ``Count``."""
        self._mine = mine
        self._counters.put(self._name, mine)

    def elsewhere(self) -> int:
        """See ``Count``."""
        return self._counters.total(self._name) - self._mine
