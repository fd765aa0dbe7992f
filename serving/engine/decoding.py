"""Reading requests that hold images, within a budget: so many at once, and no more memory for all of them together.

What decoding an image takes is known from its header. An image that does not fit beside those that are being decoded
waits; it holds no thread.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from evalmode.errors import ImageNeedsTooMuchMemory
from evalmode.images.headers import Header
from evalmode.images.orientation import STRIP_PIXELS
from evalmode.images.pixels import PixelContract, Pixels, decode_by_header
from evalmode.images.turbojpeg import COPIED_PIXELS
from serving.engine.memory import choose_decode_bytes
from serving.threads import start_threads

log = logging.getLogger(__name__)

MIB = 1024 * 1024
EXIF_PAUSE_S = 60.0  # between log records about damaged EXIF blocks, which anybody may send
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
    if header.components and pixels <= COPIED_PIXELS:
        total += 3 * pixels  # an array first, then a picture
    sides = max(width, height), min(width, height)
    total += pixel_bytes * max(contract.width, contract.height) * (sides[1] + 2)  # between the resize's two passes
    total += pixel_bytes * sides[0] * min(contract.height, sides[1])
    return total + 2 * pixel_bytes * contract.width * contract.height


class _ExifLog:
    """Logs that the orientation of an image may be lost, at most once a minute."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def note(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + EXIF_PAUSE_S
            log.warning("the EXIF block of an image is damaged: it is taken as upright; logged at most once a minute")


_exif_log = _ExifLog()


def decode_requested(header: Header, contract: PixelContract) -> Pixels:
    """Decode an image of a request, as ``decode_by_header``; where its EXIF block is damaged, a log record says so.

    Args:
        header: what it announces.
        contract: what its pixels become.
    """
    if header.exif_damaged:
        _exif_log.note()
    return decode_by_header(header, contract)


@dataclass(order=True)
class Turn:
    """A piece of work that waits for a thread.

    Attributes:
        due: When it is its turn, by ``time.monotonic``, if there is room.
        number: Of equals, the first goes first.
        cost_bytes: The memory that it takes.
        work: The work, which raises nothing; None once it has begun or is withdrawn.
        lane: Where it waits.
    """

    due: float
    number: int
    cost_bytes: int = field(compare=False)
    work: Callable[[], object] | None = field(compare=False)
    lane: _Lane = field(compare=False)


class _Lane:
    """Threads for work of one kind, and a sum of bytes for all that they do at once.

    Work begins in order of arrival plus what its size is worth in seconds, so that small work does not wait behind all
    the large work that came before it, and large work waits only so long behind small.
    """

    def __init__(self, threads: int, max_bytes: int, name: str) -> None:
        self.max_bytes = max_bytes
        self._free_bytes = max_bytes
        self._changed = threading.Condition()
        self._closed = False
        self._numbers = count()
        self._line: list[Turn] = []
        self._withdrawn = 0  # of those in the line
        start_threads(threads, name, self._run)

    def submit(self, work: Callable[[], object], cost_bytes: int) -> Turn:
        with self._changed:
            due = time.monotonic() + cost_bytes / PACE_BYTES_PER_S
            turn = Turn(due, next(self._numbers), cost_bytes, work, self)
            heapq.heappush(self._line, turn)
            self._changed.notify()
        return turn

    def withdraw(self, turn: Turn) -> bool:
        with self._changed:
            if turn.work is None:
                return False
            turn.work = None
            self._withdrawn += 1
            if self._withdrawn > len(self._line) / 2:
                self._line = [one for one in self._line if one.work is not None]
                heapq.heapify(self._line)
                self._withdrawn = 0
            self._changed.notify()  # it may have been the first, which the others waited for
            return True

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            work, cost_bytes = taken
            try:
                work()
            except BaseException:
                log.exception("a request could not be read")
            with self._changed:
                self._free_bytes += cost_bytes
                self._changed.notify()
            del taken, work  # else it would live until the next comes

    def _take(self) -> tuple[Callable[[], object], int] | None:
        """The first and its cost, once it fits: no other overtakes it because it is small. None: the lane is closed."""
        with self._changed:
            while True:
                while self._line and self._line[0].work is None:
                    heapq.heappop(self._line)
                    self._withdrawn -= 1
                if self._line and self._line[0].cost_bytes <= self._free_bytes:
                    break
                if self._closed:
                    return None
                self._changed.wait()
            turn = heapq.heappop(self._line)
            work, turn.work = turn.work, None
            assert work is not None
            self._free_bytes -= turn.cost_bytes
            if self._line:
                self._changed.notify()
            return work, turn.cost_bytes


class DecodeBudget:
    """Threads that read requests with images, and the memory that this may take.

    Small images have threads of their own, so that they do not wait until a large one is decoded.

    Args:
        slots: Decodes of a kind, small and large, at once.
        max_bytes: For all of them; 0: what this process may use, see ``choose_decode_bytes``.

    Raises:
        ThreadsUnavailable: The system starts too few threads.
    """

    def __init__(self, slots: int, max_bytes: int = 0) -> None:
        max_bytes = choose_decode_bytes(max_bytes).limit_bytes
        small_bytes = min(slots * SMALL_BYTES, max_bytes // 8)
        self._max_small_bytes = small_bytes // slots
        self._small = _Lane(slots, 0, "small-decode")
        self._large = _Lane(slots, max_bytes - small_bytes, "large-decode")

    def close(self) -> None:
        """End the threads once nothing waits."""
        self._small.close()
        self._large.close()

    def is_small(self, cost_bytes: int) -> bool:
        """Whether a decode of this cost is bounded by the number of threads alone."""
        return cost_bytes <= self._max_small_bytes

    def check(self, cost_bytes: int) -> None:
        """Check that a decode can ever fit.

        Raises:
            ImageNeedsTooMuchMemory: It takes more than all that there is.
        """
        if cost_bytes > self._large.max_bytes:
            raise ImageNeedsTooMuchMemory(
                f"decoding this image takes {cost_bytes} bytes, the limit is {self._large.max_bytes}: send a smaller "
                "one, or save it again as a baseline JPEG",
                needed_bytes=cost_bytes,
                limit_bytes=self._large.max_bytes,
            )

    def submit(self, work: Callable[[], object], cost_bytes: int = 0) -> Turn:
        """Do a piece of work in a thread, once there is room for it.

        Args:
            work: Raises nothing.
            cost_bytes: The memory that it takes, at most all that there is.
        """
        if self.is_small(cost_bytes):
            return self._small.submit(work, 0)
        return self._large.submit(work, min(cost_bytes, self._large.max_bytes))

    def withdraw(self, turn: Turn) -> bool:
        """Take back work that has not begun.

        Returns:
            Whether it had not.
        """
        return turn.lane.withdraw(turn)
