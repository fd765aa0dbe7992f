"""Messages: decompresses and parses them within memory limits.

grpc's core decompresses a message without a limit. ``NO_INFLATION`` switches that off, and it is done here.
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
HELD_MESSAGES, MIN_HELD_BYTES = 4, 16 * 2**20  # messages in memory: four of the largest size, or 16 MiB if that is more
_PACKED_BYTES, _INFLATED_BYTES = 2**14, 2**18  # one step of decompression
_ANY_HEADER = 32 + zlib.MAX_WBITS  # gzip or zlib


@dataclass(eq=False)
class Held:
    """The memory that a message takes, in bytes; None once it is freed."""

    size_bytes: int | None


class Messages:
    """Limits the memory that messages take.

    Args:
        max_bytes: The maximum size of one message after decompression.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._limit_bytes = max(MIN_HELD_BYTES, HELD_MESSAGES * max_bytes)
        self._lock = threading.Lock()
        self._held_bytes = 0

    def hold(self, message: bytes) -> Held:
        """Count the memory of a message until ``free``.

        Raises:
            MessagesFull: Other messages take too much memory.
        """
        held = Held(0)
        self._grow(held, len(message))
        return held

    def free(self, held: Held) -> None:
        """Stop counting the memory of a message."""
        with self._lock:
            self._held_bytes -= held.size_bytes or 0
            held.size_bytes = None

    def count_bytes(self, message: bytes) -> int:
        """The maximum memory that parsing a message takes, in bytes."""
        return self.max_bytes if may_be_compressed(message) else len(message)

    def parse(self, parse: Callable[[bytes], Any], message: bytes, held: Held) -> Any:
        """Parse a message, which may be compressed.

        Args:
            parse: Parses the bytes, such as ``FromString`` of the request's class.
            message: The message as it arrived.
            held: Its memory, to which the decompressed size is added.

        Returns:
            The request.

        Raises:
            MessageInvalid: The message is damaged, or is not of this type.
            MessageTooLarge: The message exceeds the limit after decompression.
            MessagesFull: Other messages take too much memory for the decompressed message.
        """
        if may_be_compressed(message):
            message = self._inflate(message)
            self._grow(held, len(message))
        return parse_message(parse, message)

    def _grow(self, held: Held, size_bytes: int) -> None:
        with self._lock:
            if self._held_bytes and self._held_bytes + size_bytes > self._limit_bytes:
                raise MessagesFull(
                    f"messages in flight take {self._held_bytes} bytes, the limit is {self._limit_bytes}: retry later",
                    limit_bytes=self._limit_bytes,
                )
            if held.size_bytes is not None:
                held.size_bytes += size_bytes
                self._held_bytes += size_bytes

    def _inflate(self, message: bytes) -> bytes:
        try:
            inflated = inflate(message, self.max_bytes)
        except zlib.error as error:
            if message[:1] == b"x":  # a message that is not compressed may begin like this, too
                return message
            raise MessageInvalid(f"the message, {len(message)} bytes of gzip, is damaged: {error}") from error
        if inflated is None:
            raise MessageTooLarge(
                f"the message is larger than max ({self.max_bytes} bytes) after decompression: send a smaller one",
                limit_bytes=self.max_bytes,
            )
        return inflated


def inflate(packed: bytes, max_bytes: int) -> bytes | None:
    """Decompress gzip or zlib data, in steps: zlib would hold the interpreter's lock for the whole output.

    Args:
        packed: The compressed data.
        max_bytes: The maximum size of the output.

    Returns:
        The decompressed data; None if it exceeds ``max_bytes``.

    Raises:
        zlib.error: The data is damaged.
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
            if not piece and len(pieces[-1]) < _INFLATED_BYTES:  # a full step may have left output in zlib
                break
    if not inflator.eof:
        raise zlib.error("the end of the data is missing")
    return b"".join(pieces)


def parse_message(parse: Callable[[bytes], Any], message: bytes) -> Any:
    """Parse a message that is not compressed.

    Args:
        parse: Parses the bytes, such as ``FromString`` of the request's class.
        message: The message.

    Returns:
        The request.

    Raises:
        MessageInvalid: The message is not of this type.
    """
    try:
        return parse(message)
    except DecodeError as error:
        raise MessageInvalid(
            f"the message of {len(message)} bytes cannot be parsed: send the request message of this method"
        ) from error


def may_be_compressed(message: bytes) -> bool:
    """Whether a message begins like gzip, which no protobuf message does, or like zlib."""
    return message[:2] == b"\x1f\x8b" or (message[:1] == b"x" and int.from_bytes(message[:2]) % 31 == 0)
