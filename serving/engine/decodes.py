"""Decodes that wait: small ones for a slot, large ones for memory and a slot of their own."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count

from evalmode.errors import ImageNeedsTooMuchMemory
from serving.engine.job import Decode
from serving.engine.shared_limits import SharedSlots

MIB = 1024 * 1024
SMALL_BYTES = 8 * MIB  # decodes in about 10 ms: a JPEG of a million pixels
# A large image is overtaken only by smaller ones that arrive within its size divided by this.
PACE_BYTES_PER_S = 100 * MIB


class Decodes:
    """Decodes that wait, and the memory of those that run.

    Small decodes start in the order of arrival, and are limited by the number of slots alone. Large ones start in the
    order of their arrival plus a delay that is proportional to their memory. A smaller one therefore does not wait for
    all larger ones that arrived before it, and a large one is not delayed forever.

    Args:
        slots: The slots for large decodes; those for small ones are as many.
        max_bytes: The limit on the memory of all decodes.

    Attributes:
        max_bytes: The limit on the memory of a decode.
        small: The small decodes that wait.
    """

    def __init__(self, slots: SharedSlots, max_bytes: int) -> None:
        small_bytes = min(slots.limit * SMALL_BYTES, max_bytes // 8)
        self._small_bytes = small_bytes // slots.limit
        self.max_bytes = self._free_bytes = max_bytes - small_bytes
        self._slots = slots
        self._numbers = count()
        self.small: deque[Decode] = deque()
        self._large: list[tuple[float, int, Decode]] = []

    def is_small(self, cost_bytes: int) -> bool:
        """Return whether a decode is limited by the number of slots alone, not by memory."""
        return cost_bytes <= self._small_bytes

    def check(self, cost_bytes: int) -> None:
        """Check that a decode fits into the memory at all.

        Args:
            cost_bytes: The memory that it needs.

        Raises:
            ImageNeedsTooMuchMemory: It needs more than all decodes together may use.
        """
        if cost_bytes > self.max_bytes:
            raise ImageNeedsTooMuchMemory(
                f"decoding this image takes {cost_bytes} bytes, the limit is {self.max_bytes}: send a smaller image, "
                "or convert it to a baseline JPEG",
                needed_bytes=cost_bytes,
                limit_bytes=self.max_bytes,
            )

    def add(self, step: Decode, now: float) -> None:
        """Let a decode wait. One that needs more memory than there is counts as the limit.

        Args:
            step: The decode.
            now: The current time.
        """
        if self.is_small(step.cost_bytes):
            self.small.append(step)
            return
        step.cost_bytes = min(step.cost_bytes, self.max_bytes)
        heapq.heappush(self._large, (now + step.cost_bytes / PACE_BYTES_PER_S, next(self._numbers), step))

    def remove(self, step: Decode) -> None:
        """Remove a decode that waits."""
        if self.is_small(step.cost_bytes):
            self.small.remove(step)
            return
        self._large = [one for one in self._large if one[2] is not step]
        heapq.heapify(self._large)

    def take_large(self) -> Decode | None:
        """Take the first large decode if a slot and its memory are free; no other one overtakes it."""
        is_free = self._slots.is_free()
        self._slots.note_waiting(bool(self._large) and not is_free)
        if not is_free or not self._large or self._large[0][2].cost_bytes > self._free_bytes:
            return None
        step = heapq.heappop(self._large)[2]
        self._slots.take()
        self._free_bytes -= step.cost_bytes
        return step

    def release_large(self, step: Decode) -> None:
        """Free the slot and the memory of a large decode."""
        self._slots.give_back()
        self._free_bytes += step.cost_bytes
