"""The HTTP/2 client of the benchmarks and tests, which writes its own frames, obeys the rules of the protocol."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from unittest.mock import patch

import hpack
import pytest

from benchmarks.http2 import (
    CANCEL,
    CLOSED,
    DATA,
    END_HEADERS,
    END_STREAM,
    EXPIRED,
    GOAWAY,
    HEADERS,
    MAX_CONCURRENT_STREAMS,
    PREDICT,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Connection,
    encode_call,
    frame,
    message,
)

WAIT_S = 30
BLOCK, DATA_OF_ONE = encode_call(PREDICT), message(b"x")


class Peer:
    """A server that sends the frames of a test, and records the frames that it receives."""

    def __init__(self, **options: bool) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.client = Connection(f"127.0.0.1:{listening.getsockname()[1]}", **options)
            self._socket, _ = listening.accept()
        self._socket.settimeout(WAIT_S)
        self._in = b""
        self.frames: list[tuple[int, int, bytes]] = []  # kind, stream, payload

    def close(self) -> None:
        self.client.close()
        self._socket.close()

    def allow(self, streams: int) -> None:
        self.send(frame(SETTINGS, 0, 0, struct.pack(">HI", MAX_CONCURRENT_STREAMS, streams)))

    def end(self, stream: int) -> None:
        block = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple("grpc-status", "0")])
        self.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block))

    def send(self, content: bytes) -> list[tuple[int, int]]:
        """Send bytes; return the calls that ended for the client, by stream and status."""
        self._socket.sendall(content)
        until, ended = time.monotonic() + WAIT_S, []
        probe = frame(6, 0, 0, b"a ping..")  # answered once everything before it has been read
        self._socket.sendall(probe)
        while not any(kind == 6 and payload == b"a ping.." for kind, _, payload in self.frames):
            ended += [(call.stream, call.status) for call in self.client.receive()]
            self.read()
            assert time.monotonic() < until
        self.frames = [one for one in self.frames if one[0] != 6]
        return ended

    def read(self) -> None:
        """Read everything that the client has written so far."""
        self.client.flush()
        assert not self.client.waiting
        self._socket.setblocking(False)
        try:
            self._in += self._socket.recv(1 << 20)
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(WAIT_S)
        self._in = self._in.removeprefix(PREFACE)
        while len(self._in) >= 9 and not PREFACE.startswith(self._in[: len(PREFACE)]):
            high, low, kind, _, stream = struct.unpack_from(">BHBBI", self._in)
            after = 9 + (high << 16 | low)
            if len(self._in) < after:
                return
            self.frames.append((kind, stream, self._in[9:after]))
            self._in = self._in[after:]

    def streams(self, kind: int = HEADERS) -> list[int]:
        """The streams of the received frames of a kind, in order."""
        return [stream for one, stream, _ in self.frames if one == kind]


@pytest.fixture
def peer() -> Iterator[Peer]:
    with closing(Peer()) as made:
        yield made


def test_the_client_opens_at_most_as_many_streams_as_the_server_allows(peer: Peer) -> None:
    calls = [peer.client.call(BLOCK, DATA_OF_ONE) for _ in range(4)]
    peer.send(b"")
    assert (peer.streams(), peer.client.ready) == ([], False)  # the server has not sent its limit
    peer.allow(2)
    assert peer.client.ready
    assert (peer.streams(), peer.client.queued) == (calls[:2], 2)
    peer.end(calls[0])
    assert (peer.streams(), peer.client.queued) == (calls[:3], 1)
    peer.client.reset(calls[1])
    peer.send(b"")
    assert peer.streams() == peer.streams(DATA) == calls
    assert peer.client.open_streams == set(calls[2:])


def test_all_calls_are_sent_to_a_server_without_a_limit(peer: Peer) -> None:
    calls = [peer.client.call(BLOCK, DATA_OF_ONE) for _ in range(300)]
    peer.send(frame(SETTINGS, 0, 0))
    assert peer.streams() == calls


def test_a_queued_call_whose_deadline_expires_is_never_sent(peer: Peer) -> None:
    peer.allow(1)
    now = time.perf_counter()
    first, late, last = (peer.client.call(BLOCK, DATA_OF_ONE, until=now + seconds) for seconds in (3600, 60, 3600))
    with patch("benchmarks.http2.time.perf_counter", return_value=now + 61):
        peer.client.reset(first)  # makes room
        assert peer.send(b"") == [(late, EXPIRED)]
    assert peer.streams() == [first, last]


def test_the_timeout_header_holds_the_remaining_time(peer: Peer) -> None:
    now = time.perf_counter()
    for seconds in (1.5, 1000):
        peer.client.call(BLOCK, DATA_OF_ONE, until=now + seconds)
    with patch("benchmarks.http2.time.perf_counter", return_value=now + 0.5):
        peer.allow(2)
    headers: list[dict[Any, Any]] = [
        dict(hpack.Decoder().decode(payload)) for kind, _, payload in peer.frames if kind == HEADERS
    ]
    assert [one["grpc-timeout"] for one in headers] == ["1000000u", "999500m"]
    assert {one[":path"] for one in headers} == {PREDICT}


def test_a_queued_call_that_is_cancelled_is_never_sent(peer: Peer) -> None:
    peer.allow(1)
    first, cancelled, last = (peer.client.call(BLOCK, DATA_OF_ONE) for _ in range(3))
    peer.client.reset(cancelled)
    peer.end(first)
    assert peer.streams() == [first, last]
    assert peer.streams(RST_STREAM) == []


def test_data_of_a_queued_call_follows_its_headers(peer: Peer) -> None:
    stream = peer.client.call(BLOCK, b"one", end=False)
    peer.client.send(stream, b"two", end=True)
    peer.allow(1)
    assert [(kind, payload) for kind, number, payload in peer.frames if number == stream][1:] == [
        (DATA, b"one"),
        (DATA, b"two"),
    ]


def test_the_client_resets_a_call_that_the_server_ended_first(peer: Peer) -> None:
    """Otherwise the server would count the stream as open."""
    peer.allow(1)
    unended = peer.client.call(BLOCK, b"half", end=False)
    peer.end(unended)
    peer.send(b"")
    assert [(stream, payload) for kind, stream, payload in peer.frames if kind == RST_STREAM] == [
        (unended, struct.pack(">I", CANCEL))
    ]


def test_queued_calls_end_when_the_server_sends_goaway(peer: Peer) -> None:
    peer.allow(1)
    first, waiting = peer.client.call(BLOCK, DATA_OF_ONE), peer.client.call(BLOCK, DATA_OF_ONE)
    assert peer.send(frame(GOAWAY, 0, 0, struct.pack(">II", first, 0))) == [(waiting, CLOSED)]
    assert peer.streams() == [first]


def test_a_client_with_obey_false_ignores_the_limit() -> None:
    with closing(Peer(obey=False)) as peer:
        calls = [peer.client.call(BLOCK, DATA_OF_ONE) for _ in range(3)]
        peer.send(b"")
        assert peer.streams() == calls
        peer.allow(1)
        calls += [peer.client.call(BLOCK, DATA_OF_ONE) for _ in range(3)]
        peer.send(b"")
        assert peer.streams() == calls
