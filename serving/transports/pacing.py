"""Pauses between large messages: grpc copies each on the event loop, and every other call waits meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

LARGE_BYTES = 2**20  # copied in a millisecond
BYTES_PER_S = 256 * 2**20  # of large messages: copying so many takes a quarter of the loop's time
MAX_WAIT_S = 4.0
MAX_SENDERS = 1024  # that are remembered

Sender: TypeAlias = tuple[str, str]  # the name of a connection, and the path of a method


class Pacing:
    """Spreads the messages of connections that send large ones. For the thread of the event loop alone.

    The size of a message is known once it is copied, so the one before it on the same connection, for the same method,
    tells what to expect: health checks do not wait behind large images. A message that proves to be small lets go all
    that wait on its connection.

    Args:
        clock: The time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sizes: OrderedDict[Sender, int] = OrderedDict()  # of those whose last message was large
        self._let_go: dict[Sender, asyncio.Event] = {}  # of those whose messages wait
        self._next = 0.0  # when the next of these may be read

    async def wait(self, sender: Sender) -> None:
        """Wait before a message is read, if it may be large."""
        if not (pause_s := self.take_turn(sender)):
            return
        cost_s = self._sizes[sender] / BYTES_PER_S
        let_go = self._let_go.setdefault(sender, asyncio.Event())
        with suppress(TimeoutError):
            await asyncio.wait_for(let_go.wait(), pause_s)
            self._next -= cost_s  # it took no turn

    def take_turn(self, sender: Sender) -> float:
        """How many seconds the next message of a sender has to wait."""
        if (size_bytes := self._sizes.get(sender)) is None:
            return 0.0
        now = self._clock()
        due = min(max(self._next, now), now + MAX_WAIT_S)
        self._next = due + size_bytes / BYTES_PER_S
        return due - now

    def note(self, sender: Sender, size_bytes: int) -> None:
        """Note the size of a message that was read."""
        self._sizes.pop(sender, None)
        if size_bytes >= LARGE_BYTES:
            self._sizes[sender] = size_bytes
            if len(self._sizes) > MAX_SENDERS:
                self._forget(self._sizes.popitem(last=False)[0])
        else:
            self._forget(sender)

    def _forget(self, sender: Sender) -> None:
        """Let go what waits of a sender."""
        if let_go := self._let_go.pop(sender, None):
            let_go.set()
