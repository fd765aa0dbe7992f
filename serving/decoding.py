"""Decoding within a budget: so many at once, and no more memory for all of them together.

Decoding runs in the thread that brought the image. What an image takes is known from its header; one that does not fit
beside those that are being decoded waits, within its call's deadline.
"""

from __future__ import annotations

import heapq
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue

from serving.batch import Call, check_alive, reason_dead
from serving.errors import DeadlineExpired, ImageNeedsTooMuchMemory
from serving.headers import Header
from serving.limits import Limits
from serving.memory import choose_decode_bytes
from serving.pixels import PLAIN_PIXELS, STRIP_PIXELS, PixelContract, Pixels, announce_image, decode_announced

MIB = 1024 * 1024
SMALL_BYTES = 8 * MIB  # decodes in about 10 ms: a JPEG of a million pixels
PACE_BYTES_PER_S = 100 * MIB  # a large image waits so much longer than a small one that comes after it

# What decoding takes beside the decoder: benchmarks/decode_cost.py measures it.
BASE_BYTES = MIB
SIDE_BYTES = 64  # a row or column: pointers of each picture, weights of the resize
STRIP_BYTES = 16  # a pixel of the strip that is being converted


def count_decode_bytes(header: Header, contract: PixelContract) -> int:
    """The most memory that decoding an image takes at once, in bytes.

    Args:
        header: what it announces.
        contract: what its pixels become.
    """
    width, height = header.width, header.height
    pixels = width * height
    mode, pixel_bytes = ("RGB", 4) if contract.channels == 3 else ("L", 1)
    total = BASE_BYTES + header.decoder_bytes + header.row_bytes + SIDE_BYTES * (width + height)
    if header.direct != mode:
        total += pixels * pixel_bytes + STRIP_BYTES * min(pixels, max(STRIP_PIXELS, width))
    elif header.colours and pixels <= PLAIN_PIXELS:
        total += pixels * pixel_bytes  # an array first, then a picture to resize
    sides = max(width, height), min(width, height)
    total += pixel_bytes * max(contract.width, contract.height) * (sides[1] + 2)  # between the resize's two passes
    total += pixel_bytes * sides[0] * min(contract.height, sides[1])
    return total + 2 * pixel_bytes * contract.width * contract.height


@dataclass(eq=False)
class _Waiting:
    """A decode that does not fit yet."""

    cost_bytes: int
    wake: SimpleQueue[None] = field(default_factory=SimpleQueue)
    granted: bool = False


class _Lane:
    """A number of decodes at once, and a sum of bytes for them.

    They are let in by arrival plus what their size is worth in seconds, so that a small one does not wait behind all
    the large ones that came before it, and a large one waits only so long behind small ones.
    """

    def __init__(self, slots: int, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._free_slots = slots
        self._free_bytes = max_bytes
        self._lock = threading.Lock()
        self._numbers = count()
        self._line: list[tuple[float, int, _Waiting]] = []

    def take(self, cost_bytes: int, call: Call) -> None:
        with self._lock:
            if not self._line and self._free_slots and cost_bytes <= self._free_bytes:
                self._free_slots -= 1
                self._free_bytes -= cost_bytes
                return
            waiting = _Waiting(cost_bytes)
            due = time.monotonic() + cost_bytes / PACE_BYTES_PER_S
            heapq.heappush(self._line, (due, next(self._numbers), waiting))
            self._let_in()
        call.wake_on_cancel(partial(waiting.wake.put, None))
        with suppress(Empty):
            waiting.wake.get(timeout=min(max(0.0, call.time_remaining_s()), threading.TIMEOUT_MAX))
        with self._lock:
            granted = waiting.granted
            self._line = [entry for entry in self._line if entry[2] is not waiting]
            heapq.heapify(self._line)
            self._let_in()  # it may have been the first, which the others waited for
        if granted and reason_dead(call) is None:
            return
        if granted:
            self.give_back(cost_bytes)
        check_alive(call)
        raise DeadlineExpired("the deadline passed while waiting for memory to decode in: the network did not run")

    def give_back(self, cost_bytes: int) -> None:
        with self._lock:
            self._free_slots += 1
            self._free_bytes += cost_bytes
            if self._line:
                self._let_in()

    def _let_in(self) -> None:
        """Grant those that fit, in turn: none is overtaken by a later one because it is large."""
        while self._line and self._free_slots and self._line[0][2].cost_bytes <= self._free_bytes:
            waiting = heapq.heappop(self._line)[2]
            self._free_slots -= 1
            self._free_bytes -= waiting.cost_bytes
            waiting.granted = True
            waiting.wake.put(None)


class DecodeBudget:
    """Bounds how many images are decoded at once, and the memory that this takes.

    Small images have slots of their own, so that they do not wait until a large one is decoded.

    Args:
        slots: decodes of a kind, small and large, at once.
        max_bytes: for all of them.
        limits: what an image may weigh.
    """

    def __init__(self, slots: int, max_bytes: int, limits: Limits) -> None:
        self._limits = limits
        small_bytes = min(slots * SMALL_BYTES, max_bytes // 8)
        self._max_small_bytes = min(SMALL_BYTES, small_bytes)
        self._small = _Lane(slots, small_bytes)
        self._large = _Lane(slots, max_bytes - small_bytes)

    def decode(self, image: bytes, contract: PixelContract, call: Call) -> Pixels:
        """Decode an encoded image to the pixels a network sees, as ``decode_image``, once there is room.

        Args:
            image: encoded.
            contract: the shape of the pixels.
            call: who asks.

        Raises:
            ImageError: it cannot be decoded.
            DeadlineExpired: the deadline passed while it waited.
            RequestCancelled: the caller went away while it waited.
        """
        header = announce_image(image, self._limits)
        cost_bytes = count_decode_bytes(header, contract)
        lane = self._choose_lane(cost_bytes)
        lane.take(cost_bytes, call)
        try:
            return decode_announced(header, contract)
        finally:
            lane.give_back(cost_bytes)

    def _choose_lane(self, cost_bytes: int) -> _Lane:
        if cost_bytes <= self._max_small_bytes:
            return self._small
        if cost_bytes > self._large.max_bytes:
            raise ImageNeedsTooMuchMemory(
                f"decoding this image takes {cost_bytes} bytes, the limit is {self._large.max_bytes}: send a smaller "
                "one, or save it again as a baseline JPEG",
                needed_bytes=cost_bytes,
                limit_bytes=self._large.max_bytes,
            )
        return self._large


def make_budget(slots: int, limits: Limits) -> DecodeBudget:
    """A budget of ``max_decode_bytes``, or of what this process may use.

    Args:
        slots: decodes of a kind, small and large, at once.
        limits: what an image may weigh, and all that are decoded.
    """
    return DecodeBudget(slots, choose_decode_bytes(limits.max_decode_bytes).limit_bytes, limits)
