"""Pauses between large messages, which grpc copies on the event loop while all other calls wait."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

LARGE_BYTES = 2**20  # copying takes a millisecond
BYTES_PER_S = 256 * 2**20  # of large messages: copying them takes a quarter of the loop's time
MAX_WAIT_S = 4.0
MAX_SENDERS = 1024  # whose last message was large

Sender: TypeAlias = tuple[str, str]  # the name of a connection, and the full name of a method


class Pacing:
    """Delays the messages of senders of large messages. Use it in the thread of the event loop only.

    The size of a message is known only after it is copied, so the previous message of the same connection and method
    predicts it. Health checks therefore do not wait behind large images. A message that turns out to be small releases
    all messages that wait for its sender.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sizes: OrderedDict[Sender, int] = OrderedDict()  # of the last message, if it was large
        self._released: dict[Sender, asyncio.Event] = {}  # of senders whose messages wait
        self._next = 0.0  # when the next large message may be read

    async def wait(self, sender: Sender) -> None:
        """Wait until a message may be read. A message that is not expected to be large does not wait."""
        if not (pause_s := self.take_turn(sender)):
            return
        cost_s = self._sizes[sender] / BYTES_PER_S
        released = self._released.setdefault(sender, asyncio.Event())
        with suppress(TimeoutError):
            await asyncio.wait_for(released.wait(), pause_s)
            self._next -= cost_s  # the message does not use its turn

    def take_turn(self, sender: Sender) -> float:
        """Reserve a turn for the next message of a sender, and return the seconds until then."""
        if (size_bytes := self._sizes.get(sender)) is None:
            return 0.0
        now = self._clock()
        due = min(max(self._next, now), now + MAX_WAIT_S)
        self._next = due + size_bytes / BYTES_PER_S
        return due - now

    def note(self, sender: Sender, size_bytes: int) -> None:
        """Record the size of a message that was read.

        Args:
            sender: Its sender.
            size_bytes: Its size.
        """
        self._sizes.pop(sender, None)
        if size_bytes >= LARGE_BYTES:
            self._sizes[sender] = size_bytes
            if len(self._sizes) > MAX_SENDERS:
                self._release(self._sizes.popitem(last=False)[0])
        else:
            self._release(sender)

    def _release(self, sender: Sender) -> None:
        """Release the waiting messages of a sender."""
        if released := self._released.pop(sender, None):
            released.set()
