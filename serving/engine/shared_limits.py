"""Limits that hold for a whole server, of one process or of several workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Count(Protocol):
    """A number that each worker counts for itself, and that all can read."""

    def put(self, mine: int) -> None:
        """Set the number of this worker."""

    def elsewhere(self) -> int:
        """The sum of the numbers of the other workers."""


class Alone:
    """The ``Count`` of a server of one process.

    Args:
        name: What is counted.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"Alone({self._name!r})"

    def put(self, mine: int) -> None:
        """See ``Count``."""

    def elsewhere(self) -> int:
        """See ``Count``."""
        return 0


@dataclass(frozen=True)
class SharedLimit:
    """A limit on the sum over all workers. Workers that add to it at the same moment may exceed it by one each.

    Attributes:
        limit: The limit.
        count: What is limited.
    """

    limit: int
    count: Count

    def measure_excess(self, mine: int) -> int:
        """Return by how much this worker exceeds the limit: its share of the excess of all.

        Args:
            mine: The number of this worker.
        """
        self.count.put(mine)
        total = mine + self.count.elsewhere()
        return -(-max(0, total - self.limit) * mine // total) if mine else 0


class SharedSlots:
    """Slots that all workers share. A worker takes one that no worker uses, and if it uses none itself, one more.

    While others wait for a slot, it takes no more than an equal share. A worker does not notice that another one gives
    back a slot: it has to look again.

    Args:
        limit: The number of slots.
        name: Their name: ``NAME_busy`` counts those in use, and ``NAME_awaited`` the workers that wait for one.
        count: Returns the ``Count`` of a name.

    Attributes:
        limit: See above.
        busy: The slots that this worker uses.
    """

    def __init__(self, limit: int, name: str, count: Callable[[str], Count]) -> None:
        self.limit = limit
        self.busy = 0
        self._count = count(f"{name}_busy")
        self._waiting = count(f"{name}_awaited")
        self._waits = False

    def is_free(self, beside: int = 0) -> bool:
        """Return whether this worker may take one more slot.

        Args:
            beside: Further slots that it takes before.
        """
        busy = self.busy + beside
        if not busy or busy >= self.limit:
            return busy < self.limit
        if busy + self._count.elsewhere() >= self.limit:
            return False
        waiting = self._waiting.elsewhere()
        return not waiting or busy * (1 + waiting) < self.limit

    def take(self) -> None:
        """Take a slot, which must be free."""
        self.busy += 1
        self._count.put(self.busy)

    def give_back(self) -> None:
        """Give back a slot."""
        self.busy -= 1
        self._count.put(self.busy)

    def note_waiting(self, waits: bool) -> None:
        """Note whether this worker waits for a slot."""
        if waits != self._waits:
            self._waits = waits
            self._waiting.put(int(waits))
