"""Messages are parsed within limits, even if they are compressed, damaged, of another type or too many."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.soak.attackers import make_bomb
from evalmode.errors import MessageInvalid, MessagesFull, MessageTooLarge
from evalmode.wire import classifier_pb2 as wire
from serving.transports.messages import HELD_MESSAGES, Messages, inflate

MAX_BYTES = 1000
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zlib": zlib.compress}


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Make the limit of all messages a multiple of the limit of one, however small it is."""
    with patch("serving.transports.messages.MIN_HELD_BYTES", 0):
        yield


@contextmanager
def opened(messages: Messages, message: bytes, parse: Callable[[bytes], Any]) -> Iterator[Any]:
    """Parse a message and hold it for the duration of the block."""
    held = messages.hold(message)
    try:
        yield messages.parse(parse, message, held)
    finally:
        messages.free(held)


def read(message: bytes, messages: Messages | None = None) -> bytes:
    with opened(messages or Messages(MAX_BYTES), message, bytes) as request:
        return request


@pytest.mark.parametrize("kind", PACK)
def test_a_compressed_message_is_decompressed_up_to_the_limit(kind: str) -> None:
    whole = bytes(range(250)) * 4
    assert read(PACK[kind](whole)) == whole
    with pytest.raises(MessageTooLarge, match=r"larger than max \(1000 bytes\) after decompression") as caught:
        read(PACK[kind](whole + b"x"))
    assert caught.value.facts == {"limit_bytes": "1000"}


def test_a_decompression_bomb_uses_no_more_memory_than_the_limit() -> None:
    bomb, limit = make_bomb(256 * 2**20), 2**20
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLarge):
            read(bomb, Messages(limit))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * limit


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:2], lambda whole: whole[:-9], lambda whole: whole[:12] + b"\xff" * 9 + whole[21:]],
    ids=["beginning only", "end missing", "damaged in the middle"],
)
def test_damaged_gzip_is_refused(damage) -> None:
    with pytest.raises(MessageInvalid, match="bytes of gzip, is damaged"):
        read(damage(gzip.compress(bytes(range(200)))))


@pytest.mark.parametrize(
    "message",
    [b"x\x9c\x01", b"x", b"x\x01abc", b"xylophone", b"x\x9c" + zlib.compress(bytes(range(200)))[2:-40], b"", b"\n\x00"],
)
def test_an_uncompressed_message_stays_unchanged_even_if_it_resembles_zlib(message: bytes) -> None:
    assert read(message) == message


def test_an_unknown_field_that_resembles_zlib_is_parsed() -> None:
    with opened(Messages(MAX_BYTES), b"x\x9c\x01\n\x03red", wire.PredictRequest.FromString) as request:
        assert request.image == b"red"


@pytest.mark.parametrize("message", [b"\xff\xff\xff", gzip.compress(b"\xff\xff\xff", mtime=0)])
def test_unparsable_bytes_are_refused_and_release_their_memory(message: bytes) -> None:
    messages = Messages(MAX_BYTES)
    with (
        pytest.raises(MessageInvalid, match="the message of 3 bytes cannot be parsed"),
        opened(messages, message, wire.PredictRequest.FromString),
    ):
        raise AssertionError("parsed")
    assert messages._held_bytes == 0


def test_the_total_size_of_messages_in_memory_is_limited() -> None:
    messages = Messages(MAX_BYTES)
    with ExitStack() as held:
        for _ in range(HELD_MESSAGES):
            held.enter_context(opened(messages, bytes(MAX_BYTES), bytes))
        with pytest.raises(MessagesFull, match="take 4000 bytes, the limit is 4000: retry later") as caught:
            read(b"one more", messages)
        assert caught.value.facts == {"limit_bytes": "4000"}
    assert read(b"one more", messages) == b"one more"


def test_the_total_limit_has_a_minimum() -> None:
    with patch("serving.transports.messages.MIN_HELD_BYTES", 9 * MAX_BYTES):
        messages = Messages(MAX_BYTES)
    with ExitStack() as held:
        for _ in range(9):
            held.enter_context(opened(messages, bytes(MAX_BYTES), bytes))
        with pytest.raises(MessagesFull, match="the limit is 9000"):
            read(b"one more", messages)


def test_a_compressed_message_counts_with_both_sizes() -> None:
    messages, whole = Messages(MAX_BYTES), bytes(MAX_BYTES)
    packed = gzip.compress(whole)
    with opened(messages, packed, bytes):
        assert messages._held_bytes == len(packed) + MAX_BYTES
    with opened(messages, bytes(3 * MAX_BYTES), bytes):
        with pytest.raises(MessagesFull):
            read(packed, messages)
        assert messages._held_bytes == 3 * MAX_BYTES
        assert read(gzip.compress(b"small"), messages) == b"small"
    assert messages._held_bytes == 0


def test_the_only_message_is_always_accepted() -> None:
    messages = Messages(100)
    assert read(bytes(4000), messages) == bytes(4000)
    assert messages._held_bytes == 0


def test_a_message_decompressed_after_the_end_of_its_call_holds_no_memory() -> None:
    messages, packed = Messages(MAX_BYTES), gzip.compress(bytes(MAX_BYTES))
    held = messages.hold(packed)
    messages.free(held)
    assert messages.parse(bytes, packed, held) == bytes(MAX_BYTES)
    messages.free(held)
    assert messages._held_bytes == 0


@pytest.mark.parametrize("kind", PACK)
def test_a_compressed_message_is_assigned_the_limit_and_others_their_size(kind: str) -> None:
    messages = Messages(MAX_BYTES)
    assert messages.count_bytes(PACK[kind](b"small")) == MAX_BYTES
    assert messages.count_bytes(bytes(77)) == 77
    assert messages.count_bytes(b"") == 0


@pytest.mark.parametrize("size", [0, 1, 2**14, 2**18 - 1, 2**18, 2**18 + 1, 3 * 2**18, 3 * 2**18 + 7])
@pytest.mark.parametrize("form", [31, 15], ids=["gzip", "zlib"])
def test_messages_of_any_size_are_decompressed_completely(size: int, form: int) -> None:
    for content in (bytes(size), random.Random(size).randbytes(size)):
        packer = zlib.compressobj(9, zlib.DEFLATED, form)
        packed = packer.compress(content) + packer.flush()
        assert inflate(packed, size) == content
        assert inflate(packed, size - 1) is None or size == 0
        with pytest.raises(zlib.error, match="the end of the data is missing"):
            inflate(packed[:-1], size)
