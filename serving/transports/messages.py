"""Messages: from bytes as they came to a request, within bounds whatever they are.

grpc's core inflates a compressed message to whatever it becomes, so that is done here (``NO_INFLATION``), to the limit.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from evalmode.errors import MessageInvalid, MessagesFull, MessageTooLarge

NO_INFLATION = ("grpc.per_message_decompression", 0)  # an option of grpc's core
HELD_MESSAGES, MIN_HELD_BYTES = 4, 16 * 2**20  # so many of the largest size may be in memory
_PACKED_BYTES, _INFLATED_BYTES = 2**14, 2**18  # a step of inflating
_ANY_HEADER = 32 + zlib.MAX_WBITS  # of gzip or zlib


@dataclass(eq=False)
class Held:
    """The bytes that a message holds; None once they are free."""

    size_bytes: int | None


class Messages:
    """Bounds what messages hold.

    Args:
        max_bytes: Of one message, inflated.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._limit_bytes = max(MIN_HELD_BYTES, HELD_MESSAGES * max_bytes)
        self._lock = threading.Lock()
        self._held_bytes = 0

    def hold(self, message: bytes) -> Held:
        """Note that a message is in memory, until ``free``.

        Raises:
            MessagesFull: Others hold too much.
        """
        held = Held(0)
        self._grow(held, len(message))
        return held

    def free(self, held: Held) -> None:
        """The opposite of ``hold``."""
        with self._lock:
            self._held_bytes -= held.size_bytes or 0
            held.size_bytes = None

    def count_bytes(self, message: bytes) -> int:
        """The most memory that parsing a message takes."""
        return self.max_bytes if may_be_compressed(message) else len(message)

    def parse(self, parse: Callable[[bytes], Any], message: bytes, held: Held) -> Any:
        """A request of a message, compressed or not.

        Args:
            parse: Makes it of its bytes, such as ``FromString`` of its class.
            message: As it came.
            held: What it holds.

        Raises:
            MessageInvalid: It is damaged, or no message of this kind.
            MessageTooLarge: It is larger than the limit, inflated.
            MessagesFull: Others hold too much for what it is, inflated.
        """
        if may_be_compressed(message):
            message = self._inflate(message)
            self._grow(held, len(message))
        return parse_message(parse, message)

    def _grow(self, held: Held, size_bytes: int) -> None:
        with self._lock:
            if self._held_bytes and self._held_bytes + size_bytes > self._limit_bytes:
                raise MessagesFull(
                    f"messages in flight hold {self._held_bytes} bytes, the limit is {self._limit_bytes}: retry later",
                    limit_bytes=self._limit_bytes,
                )
            if held.size_bytes is not None:
                held.size_bytes += size_bytes
                self._held_bytes += size_bytes

    def _inflate(self, message: bytes) -> bytes:
        try:
            inflated = inflate(message, self.max_bytes)
        except zlib.error as error:
            if message[:1] == b"x":  # which may begin a message that is not compressed
                return message
            raise MessageInvalid(f"the message, {len(message)} bytes of gzip, is damaged: {error}") from error
        if inflated is None:
            raise MessageTooLarge(
                f"the message is larger than max ({self.max_bytes} bytes), inflated: send less at once",
                limit_bytes=self.max_bytes,
            )
        return inflated


def inflate(packed: bytes, max_bytes: int) -> bytes | None:
    """What gzip or zlib holds; None if it is more than ``max_bytes``.

    Piece by piece: zlib puts its whole output together while it holds the interpreter's lock.

    Raises:
        zlib.error: It is damaged.
    """
    inflator, pieces, size = zlib.decompressobj(_ANY_HEADER), [], 0
    view = memoryview(packed)
    for start in range(0, len(packed), _PACKED_BYTES):
        piece: bytes | memoryview = view[start : start + _PACKED_BYTES]
        while not inflator.eof:
            pieces.append(inflator.decompress(piece, _INFLATED_BYTES))
            size += len(pieces[-1])
            if size > max_bytes:
                return None
            piece = inflator.unconsumed_tail
            if not piece and len(pieces[-1]) < _INFLATED_BYTES:  # else some may be left inside
                break
    if not inflator.eof:
        raise zlib.error("its end is missing")
    return b"".join(pieces)


def parse_message(parse: Callable[[bytes], Any], message: bytes) -> Any:
    """A request of its bytes.

    Args:
        parse: Makes it, such as ``FromString`` of its class.
        message: Its bytes.

    Raises:
        MessageInvalid: They are none.
    """
    try:
        return parse(message)
    except DecodeError as error:
        raise MessageInvalid(f"the message, {len(message)} bytes, cannot be parsed: send this method's own") from error


def may_be_compressed(message: bytes) -> bool:
    """Whether a message begins as gzip, as which no protobuf can begin, or as zlib."""
    return message[:2] == b"\x1f\x8b" or (message[:1] == b"x" and int.from_bytes(message[:2]) % 31 == 0)
