"""Decoding of the images in requests, within a budget of threads and memory.

The memory that an image needs is computed from its header. An image that does not fit into the free part of the budget
waits without occupying a thread.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from evalmode.errors import ImageNeedsTooMuchMemory
from evalmode.images.headers import Header
from evalmode.images.orientation import STRIP_PIXELS
from evalmode.images.pixels import PixelContract, Pixels, decode_by_header, scale_header
from evalmode.images.resizing import plan_resize
from evalmode.images.turbojpeg import COPIED_PIXELS
from serving.engine.memory import choose_decode_bytes
from serving.threads import start_threads

log = logging.getLogger(__name__)

MIB = 1024 * 1024
EXIF_PAUSE_S = 60.0  # between log records about damaged EXIF blocks, which any client can send
SMALL_BYTES = 8 * MIB  # decodes in about 10 ms: a JPEG of a million pixels
PACE_BYTES_PER_S = (
    100 * MIB
)  # a large image is overtaken only by smaller ones that arrive within its size divided by this

# Memory for decoding in addition to the decoder's own, measured by benchmarks/decode_cost.py.
BASE_BYTES = MIB
SIDE_BYTES = 64  # per row and column: row pointers of each picture, resize weights
STRIP_BYTES = 16  # per pixel of the strip that is being converted


def count_decode_bytes(header: Header, contract: PixelContract) -> int:
    """Compute the peak memory for decoding an image.

    A JPEG that is decoded at a fraction of its size takes little memory, but its whole file is read. With more pixels
    than ``SMALL_BYTES`` it is therefore never counted as a small image.

    Args:
        header: The header of the image.
        contract: The pixels that the model takes.

    Returns:
        An upper bound in bytes.
    """
    header = scale_header(header, contract)
    width, height = header.decoded_size
    pixels = width * height
    mode, pixel_bytes = ("RGB", 4) if contract.channels == 3 else ("L", 1)
    total = BASE_BYTES + header.decoder_bytes + header.row_bytes + SIDE_BYTES * (width + height)
    if header.direct != mode:
        total += pixels * pixel_bytes + STRIP_BYTES * min(pixels, max(STRIP_PIXELS, width))
    if header.components and pixels <= COPIED_PIXELS:
        total += 3 * pixels  # an array first, then a picture
    total += pixel_bytes * _count_resize_pixels((width, height), contract)
    return max(total, min(header.width * header.height, SMALL_BYTES + 1))


def _count_resize_pixels(size: tuple[int, int], contract: PixelContract) -> int:
    """Compute the number of pixels of the pictures that a resize makes in addition to the decoded one.

    Args:
        size: The decoded picture, before the orientation is applied.
        contract: The pixels that the model takes.
    """
    crop_pixels = contract.width * contract.height
    short, long = min(size), max(size)
    if contract.resize.crop_ratio == 1:
        between = max(contract.width, contract.height) * (short + 2) + long * min(contract.height, short)
        return between + 2 * crop_pixels
    most = 0
    for upright in ((short, long), (long, short)):  # the orientation of most formats is known only when it is decoded
        part, resized = plan_resize(upright, (contract.width, contract.height), contract.resize.crop_ratio)
        between = max(part[0] * resized[1], resized[0] * part[1])
        most = max(most, math.prod(part) + between + math.prod(resized))
    return most + 2 * crop_pixels


class _ExifLog:
    """Logs that the orientation of an image may be wrong, at most once a minute."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def note(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + EXIF_PAUSE_S
            log.warning(
                "the EXIF block of an image is damaged: the image is treated as upright; logged at most once a minute"
            )


_exif_log = _ExifLog()


def decode_requested(header: Header, contract: PixelContract) -> Pixels:
    """Decode an image of a request, and log a warning if its EXIF block is damaged.

    Args:
        header: The header of the image.
        contract: The pixels that the model takes.

    Returns:
        Pixels, uint8 (H, W, C).

    Raises:
        ImageError: The image cannot be decoded.
    """
    if header.exif_damaged:
        _exif_log.note()
    return decode_by_header(header, contract)


@dataclass(order=True)
class Turn:
    """A queued task.

    Attributes:
        due: The task with the earliest time starts first, by ``time.monotonic``.
        number: The order of submission, for tasks with the same time.
        cost_bytes: The memory it needs.
        work: The task, which must not raise; None once it has started or was withdrawn.
        lane: The lane that it was submitted to.
    """

    due: float
    number: int
    cost_bytes: int = field(compare=False)
    work: Callable[[], object] | None = field(compare=False)
    lane: _Lane = field(compare=False)


class _Lane:
    """A pool of threads for tasks of one kind, with a limit on the memory of all running tasks.

    Tasks start in the order of their arrival time plus a delay that is proportional to their size. A small task
    therefore does not wait behind all large tasks that arrived before it, and a large task is not delayed forever.
    """

    def __init__(self, threads: int, max_bytes: int, name: str) -> None:
        self.max_bytes = max_bytes
        self._free_bytes = max_bytes
        self._changed = threading.Condition()
        self._closed = False
        self._numbers = count()
        self._line: list[Turn] = []
        self._withdrawn = 0  # tasks in the line that were withdrawn
        self.threads = start_threads(threads, name, self._run)

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
            self._changed.notify()  # it may have been first in line
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
                log.exception("decoding a request failed")
            with self._changed:
                self._free_bytes += cost_bytes
                self._changed.notify()
            del taken, work  # otherwise the task would be kept alive until the next one is submitted

    def _take(self) -> tuple[Callable[[], object], int] | None:
        """Take the first task once it fits into the free memory; no other task overtakes it.

        Returns:
            The task and its cost in bytes; None if the lane is closed.
        """
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
    """Threads that decode images, and a limit on the memory for decoding.

    Small images have threads of their own, so that they do not wait for large images.

    Args:
        slots: The number of threads for small images, and for large images.
        max_bytes: The memory for all of them; 0 lets ``choose_decode_bytes`` choose it from the
            available memory.

    Raises:
        ThreadsUnavailable: The system cannot start enough threads.
    """

    def __init__(self, slots: int, max_bytes: int = 0) -> None:
        max_bytes = choose_decode_bytes(max_bytes).limit_bytes
        small_bytes = min(slots * SMALL_BYTES, max_bytes // 8)
        self._max_small_bytes = small_bytes // slots
        self._small = _Lane(slots, 0, "small-decode")
        self._large = _Lane(slots, max_bytes - small_bytes, "large-decode")

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads."""
        return self._small.threads + self._large.threads

    def close(self) -> None:
        """End the threads once no task waits."""
        self._small.close()
        self._large.close()

    def is_small(self, cost_bytes: int) -> bool:
        """Return whether an image is small: limited by the number of threads alone, not by memory."""
        return cost_bytes <= self._max_small_bytes

    def check(self, cost_bytes: int) -> None:
        """Check that an image fits into the budget at all.

        Args:
            cost_bytes: The memory for decoding it.

        Raises:
            ImageNeedsTooMuchMemory: It needs more than the whole budget.
        """
        if cost_bytes > self._large.max_bytes:
            raise ImageNeedsTooMuchMemory(
                f"decoding this image takes {cost_bytes} bytes, the limit is {self._large.max_bytes}: send a smaller "
                "image, or convert it to a baseline JPEG",
                needed_bytes=cost_bytes,
                limit_bytes=self._large.max_bytes,
            )

    def submit(self, work: Callable[[], object], cost_bytes: int = 0) -> Turn:
        """Run a task in a thread once its memory is available.

        Args:
            work: The task; must not raise.
            cost_bytes: The memory it needs; more than the whole budget counts as the whole budget.

        Returns:
            A handle for ``withdraw``.
        """
        if self.is_small(cost_bytes):
            return self._small.submit(work, 0)
        return self._large.submit(work, min(cost_bytes, self._large.max_bytes))

    def withdraw(self, turn: Turn) -> bool:
        """Cancel a task that has not started.

        Returns:
            Whether it was cancelled.
        """
        return turn.lane.withdraw(turn)
