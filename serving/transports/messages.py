"""Messages: from bytes as they came to a request, within bounds whatever they are.

grpc's core inflates a compressed message to whatever it becomes, so that is done here (``NO_INFLATION``), to the limit.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from serving.errors import MessageInvalid, MessagesFull, MessageTooLarge

NO_INFLATION = ("grpc.per_message_decompression", 0)  # an option of grpc's core
HELD_MESSAGES = 4  # so many of the largest size may be in memory
_ANY_HEADER = 32 + zlib.MAX_WBITS  # of gzip or zlib


class Messages:
    """Bounds what messages hold.

    Args:
        max_bytes: Of one message, inflated.
        inflations: How many may be inflated at the same time.
    """

    def __init__(self, max_bytes: int, inflations: int) -> None:
        self._max_bytes = max_bytes
        self._limit_bytes = HELD_MESSAGES * max_bytes
        self._inflating = threading.BoundedSemaphore(inflations)
        self._lock = threading.Lock()
        self._held_bytes = 0

    def open(self, message: bytes, parse: Callable[[bytes], Any]) -> tuple[Any, int]:
        """A request of a message, and the bytes to ``close`` it with once it is no longer in memory.

        Args:
            message: As it came, compressed or not.
            parse: Makes a request of its bytes.

        Raises:
            MessageInvalid: It is damaged, or no message of this kind.
            MessageTooLarge: It is larger than the limit, inflated.
            MessagesFull: Others hold too much.
        """
        compressed = _may_be_compressed(message)
        size = len(message) + compressed * self._max_bytes
        with self._lock:
            if self._held_bytes and self._held_bytes + size > self._limit_bytes:
                raise MessagesFull(
                    f"messages in flight hold {self._held_bytes} bytes, the limit is {self._limit_bytes}: retry later",
                    limit_bytes=self._limit_bytes,
                )
            self._held_bytes += size
        try:
            if compressed:
                with self._inflating:
                    message = self._inflate(message)
                with self._lock:  # what it turned out to be
                    self._held_bytes += len(message) - size
                    size = len(message)
            return parse_message(parse, message), size
        except BaseException:
            self.close(size)
            raise

    def close(self, size: int) -> None:
        """Note that a message is no longer in memory."""
        with self._lock:
            self._held_bytes -= size

    def _inflate(self, message: bytes) -> bytes:
        inflator = zlib.decompressobj(_ANY_HEADER)
        try:
            inflated = inflator.decompress(message, self._max_bytes + 1)
            if len(inflated) <= self._max_bytes and not inflator.eof:
                raise zlib.error("its end is missing")
        except zlib.error as error:
            if message[:1] == b"x":  # which may begin a message that is not compressed
                return message
            raise MessageInvalid(f"the message, {len(message)} bytes of gzip, is damaged: {error}") from error
        if len(inflated) > self._max_bytes:
            raise MessageTooLarge(
                f"the message is larger than max ({self._max_bytes} bytes), inflated: send less at once",
                limit_bytes=self._max_bytes,
            )
        return inflated


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


def _may_be_compressed(message: bytes) -> bool:
    """Whether a message begins as gzip, as which no protobuf can begin, or as zlib."""
    return message[:2] == b"\x1f\x8b" or (message[:1] == b"x" and int.from_bytes(message[:2]) % 31 == 0)
