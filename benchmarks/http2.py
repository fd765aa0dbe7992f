"""Handmade HTTP/2 frames: sequences that no library would send, and requests that are built once and sent many times.

`h2` validates what it sends, which a benchmark of hostile clients must not do; only hpack is used. The client requests
an HPACK table of size 0 from the server, so that equal header blocks mean equal headers, and each is decoded once.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 3, 4  # settings
CANCEL = 8  # an error code
LARGEST_FRAME = 16384
LARGEST_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65535
LARGEST_OUT = 4 * 1024 * 1024  # pending bytes for the socket above which data is held back
RESET, CLOSED, UNREADABLE, EXPIRED = -1, -2, -3, -4  # instead of a gRPC status

PREDICT = "/evalmode.v1.Classifier/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


class Ended(NamedTuple):
    """A finished call: its stream, its gRPC status (negative if it has none), and whether it had RetryInfo."""

    stream: int
    status: int
    details: bool


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Build a frame.

    Args:
        kind: The type, such as ``HEADERS``.
        flags: The flags, such as ``END_STREAM | END_HEADERS``.
        stream: The stream's number; 0 is the connection.
        payload: At most 2**24 - 1 bytes.
    """
    return struct.pack(">BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def message(payload: bytes, compressed: bool = False, length: int | None = None) -> bytes:
    """Build a gRPC message with its five-byte prefix.

    Args:
        payload: The message.
        compressed: The flag in the prefix.
        length: The announced length in bytes, if it is not the true one.
    """
    return struct.pack(">BI", compressed, len(payload) if length is None else length) + payload


def encode_call(path: str, *metadata: tuple[str, str]) -> bytes:
    """Encode the header block of a call. It does not refer to earlier header blocks.

    Args:
        path: ``/package.Service/Method``.
        metadata: Further headers, such as ``("grpc-timeout", "1S")``.
    """
    headers = [
        *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "evalmode")),
        *(("te", "trailers"), ("content-type", "application/grpc")),
        *metadata,
    ]
    return hpack.Encoder().encode(hpack.NeverIndexedHeaderTuple(name, value) for name, value in headers)


def encode_timeout(remaining_s: float) -> bytes:
    """Encode the header ``grpc-timeout``: at most 8 digits, and at least 1 us."""
    count, unit = max(1, round(remaining_s * 1e6)), b"u"
    if count >= 10**8:
        count, unit = min(round(remaining_s * 1e3), 10**8 - 1), b"m"
    value = b"%d%s" % (count, unit)
    return b"\x10\x0cgrpc-timeout" + bytes([len(value)]) + value  # a literal that is never indexed (RFC 7541, 6.2.3)


@dataclass
class Queued:
    """A call that waits until the server's limit of streams allows it.

    Attributes:
        block: Its header block.
        until: Its deadline, by ``time.perf_counter``. None: the block contains the deadline, or there is none.
        data: The data to send, and whether they end the request.
        end: Whether the headers end the request.
    """

    block: bytes
    until: float | None
    data: list[tuple[bytes, bool]]
    end: bool


class Connection:
    """A connection that never blocks: frames that cannot be sent yet are kept here.

    A call beyond the server's SETTINGS_MAX_CONCURRENT_STREAMS waits until another has ended, as RFC 9113, 5.1.2,
    requires of clients. All calls wait until the server's settings have arrived.

    Args:
        address: HOST:PORT.
        window: Bytes of replies that the server may send on a stream. The window is never increased.
        receive_buffer: Size of the socket's receive buffer in bytes; None: the system's default.
        hello: Whether to send the preface and settings.
        obey: Whether to respect the server's limit of streams.

    Attributes:
        open_streams: Calls that have not ended, including those that wait.
    """

    def __init__(
        self,
        address: str,
        window: int = LARGEST_WINDOW,
        receive_buffer: int | None = None,
        hello: bool = True,
        obey: bool = True,
    ) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(5)
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.alive = True
        self.going = False  # the server accepts no more calls
        self.open_streams: set[int] = set()
        self._next = 1
        self._obey = obey
        self._max_streams = 0.0 if obey else math.inf  # none until the server announces its limit
        self._queue: dict[int, Queued] = {}
        self._begun: set[int] = set()  # streams whose request has not ended
        self._window, self._initial_window = DEFAULT_WINDOW, DEFAULT_WINDOW
        self._out = bytearray()
        self._in = bytearray()
        self._held: dict[int, tuple[deque[tuple[memoryview, bool]], list[int]]] = {}
        self._header_block = bytearray()
        self._decoded: dict[bytes, tuple[int | None, bool]] = {}
        if hello:
            settings = struct.pack(">HIHI", HEADER_TABLE_SIZE, 0, INITIAL_WINDOW_SIZE, window)
            grow = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGEST_WINDOW - DEFAULT_WINDOW))
            self._out += PREFACE + frame(SETTINGS, 0, 0, settings) + grow

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Bytes that the socket has not accepted."""
        return len(self._out)

    @property
    def ready(self) -> bool:
        """Whether calls may be sent: the server's settings have arrived."""
        return self._max_streams > 0

    @property
    def queued(self) -> int:
        """Number of calls that wait for others to end."""
        return len(self._queue)

    def take_stream(self) -> int:
        """Return the number of the next stream, for frames that the caller writes, regardless of the server's limit."""
        stream, self._next = self._next, self._next + 2
        self.open_streams.add(stream)
        return stream

    def call(self, block: bytes, data: bytes | None = None, end: bool = True, until: float | None = None) -> int:
        """Open a stream.

        Args:
            block: A header block from ``encode_call``.
            data: The message with its prefix, or a part of it; None for the headers alone.
            end: Whether the request ends with it.
            until: Deadline, by ``time.perf_counter``. The remaining time is sent to the server with the call. A
                call that is still waiting at its deadline is never sent, and ends as ``EXPIRED``.

        Returns:
            The number of the stream.
        """
        stream = self.take_stream()
        self._queue[stream] = Queued(block, until, [] if data is None else [(data, end)], end and data is None)
        self._begin_calls()
        return stream

    def send(self, stream: int, data: bytes, end: bool = False) -> None:
        """Send data on a stream, as far as the server's windows allow, and the rest when they grow.

        Args:
            stream: A number from ``call``.
            data: Any number of bytes.
            end: Whether the request ends with it.
        """
        if stream in self._queue:
            self._queue[stream].data.append((data, end))
            return
        if end:
            self._begun.discard(stream)
        if stream not in self._held and len(data) <= min(LARGEST_FRAME, self._window):
            self._window -= len(data)
            self._out += frame(DATA, END_STREAM if end else 0, stream, data)
            return
        waiting, _ = self._held.setdefault(stream, (deque(), [self._initial_window]))
        waiting.append((memoryview(data), end))
        self._send_held()

    def reset(self, stream: int) -> None:
        """Cancel a call. A call that still waits is never sent."""
        self.open_streams.discard(stream)
        if self._queue.pop(stream, None) is None:
            self._held.pop(stream, None)
            self._begun.discard(stream)
            self._out += frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))
            self._begin_calls()

    def write(self, frames: bytes) -> None:
        """Send arbitrary bytes."""
        self._out += frames

    def flush(self) -> None:
        """Pass pending bytes to the socket, as many as it accepts."""
        while self._out and self.alive:
            try:
                sent = self.socket.send(memoryview(self._out)[: 1 << 20])
            except BlockingIOError:
                return
            except OSError:
                self.alive = False
                return
            del self._out[:sent]
            if self._held:
                self._send_held()

    def receive(self) -> list[Ended]:
        """Return the calls that have ended. Acknowledges settings and pings."""
        while self.alive:
            try:
                chunk = self.socket.recv(1 << 18)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            self.alive = bool(chunk)
            self._in += chunk
            if len(chunk) < 1 << 18:
                break
        ended, at, arrived = [], 0, self._in
        while len(arrived) - at >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", arrived, at)
            after = at + 9 + (high << 16 | low)
            if after > len(arrived):
                break
            over = self._read(kind, flags, stream, at + 9, after)
            if over is not None and stream in self.open_streams:
                self.open_streams.discard(stream)
                unsent = self._held.pop(stream, None) is not None or stream in self._begun
                self._begun.discard(stream)
                if unsent and self._obey and over[0] != RESET:  # otherwise the server would count it as open
                    self._out += frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))
                ended.append(Ended(stream, *over))
            at = after
        del arrived[:at]
        if not self.alive:
            ended += [Ended(stream, CLOSED, False) for stream in self.open_streams]
            self.open_streams.clear()
            self._queue.clear()
        return ended + self._drop_queued()

    def close(self) -> None:
        """Close the socket with all its calls."""
        self.alive = False
        self.socket.close()

    def _begin_calls(self) -> None:
        """Send waiting calls in order, as far as the server's limit allows."""
        while self._queue and not self.going and len(self.open_streams) - len(self._queue) < self._max_streams:
            stream = next(iter(self._queue))
            queued = self._queue[stream]
            timeout = b""
            if queued.until is not None:
                if (remaining_s := queued.until - time.perf_counter()) <= 0:
                    return  # so that it is dropped first
                timeout = encode_timeout(remaining_s)
            del self._queue[stream]
            flags = END_HEADERS | (END_STREAM if queued.end else 0)
            self._out += frame(HEADERS, flags, stream, queued.block + timeout)
            if not queued.end:
                self._begun.add(stream)
            for data, end in queued.data:
                self.send(stream, data, end)

    def _drop_queued(self) -> list[Ended]:
        """End calls that will never be sent: their deadline passed, or the server accepts none. Begin others."""
        now = time.perf_counter()
        ended = [
            Ended(stream, CLOSED if self.going else EXPIRED, False)
            for stream, queued in self._queue.items()
            if self.going or (queued.until is not None and queued.until <= now)
        ]
        for call in ended:
            del self._queue[call.stream]
            self.open_streams.discard(call.stream)
        self._begin_calls()
        return ended

    def _read(self, kind: int, flags: int, stream: int, start: int, end: int) -> tuple[int, bool] | None:
        """Process a frame. If it ends the stream, return the status and whether it has details."""
        if kind in (HEADERS, CONTINUATION):
            self._header_block += self._in[start:end]
            if not flags & END_HEADERS:
                return None
            block = bytes(self._header_block)
            self._header_block.clear()
            status, details = self._decode(block)
            return None if status is None else (status, details)
        if kind == RST_STREAM:
            return RESET, False
        if kind == GOAWAY:
            self.going = True
        elif kind == WINDOW_UPDATE:
            grown = struct.unpack_from(">I", self._in, start)[0]
            if stream == 0:
                self._window += grown
            elif stream in self._held:
                self._held[stream][1][0] += grown
            self._send_held()
        elif kind == SETTINGS and not flags & ACK:
            if not self._max_streams:
                self._max_streams = math.inf  # a server without a limit does not announce one
            for at in range(start, end, 6):
                name, value = struct.unpack_from(">HI", self._in, at)
                if name == MAX_CONCURRENT_STREAMS and self._obey:
                    self._max_streams = value
                if name == INITIAL_WINDOW_SIZE:
                    for _, window in self._held.values():
                        window[0] += value - self._initial_window
                    self._initial_window = value
            self._out += frame(SETTINGS, ACK, 0)
            self._send_held()
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, bytes(self._in[start:end]))
        return None

    def _decode(self, block: bytes) -> tuple[int | None, bool]:
        """Read the gRPC status from a header block, if it has one, and whether it has error details."""
        if block not in self._decoded:
            try:
                headers = {str(name): str(value) for name, value in hpack.Decoder().decode(block)}
            except hpack.HPACKError:
                headers = {"grpc-status": str(UNREADABLE)}
            status = headers.get("grpc-status")
            found = None if status is None else int(status), "grpc-status-details-bin" in headers
            if len(self._decoded) > 10_000:
                self._decoded.clear()
            self._decoded[block] = found
        return self._decoded[block]

    def _send_held(self) -> None:
        """Send the held data that the windows allow."""
        for stream in list(self._held):
            waiting, window = self._held[stream]
            while waiting and len(self._out) < LARGEST_OUT:
                data, end = waiting[0]
                size = min(len(data), LARGEST_FRAME, self._window, window[0])
                if size <= 0 and data:
                    break
                last = size == len(data)
                self._out += frame(DATA, END_STREAM if end and last else 0, stream, bytes(data[:size]))
                self._window -= size
                window[0] -= size
                if not last:
                    waiting[0] = (data[size:], end)
                    continue
                waiting.popleft()
                if end:
                    del self._held[stream]
            if self._window <= 0 or len(self._out) >= LARGEST_OUT:
                return
