"""Bounds on a server's connections: how many there are, and how much of unfinished messages they hold.

Neither grpcio nor pygrpc-native tells how much of a message has arrived, and neither bounds it over all connections.
The kernel counts what each connection has received, the transports count what became messages: the rest is unfinished.

Source: struct tcp_info in Linux's include/uapi/linux/tcp.h. On other systems nothing is bounded here.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import socket
import struct
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

log = logging.getLogger(__name__)

SWEEP_S = 0.1  # between two looks, or longer: looks take one part in LOOKS of a core at most
LOOKS = 30
PRESSED_S, PRESSED_LOOKS = 0.02, 5  # the same, while a connection holds much
CALL_BYTES = 2048  # what a call may receive beside its message: headers and frames
REFUSED_BYTES = 65_536 + CALL_BYTES  # and what one may that is refused before its message: the stream's first window
LOOSE_FOR_EACH_SENT = 500  # so many bytes are no attack if one was sent meanwhile
SURELY_LOOSE_BYTES = 2**20  # so much without anything sent is no call: the server grants windows as it reads
LOOSE_BYTES = 2**16  # what a connection may send that belongs to no call: headers that never end, say
EXCUSED_S = 5.0  # after a call that ended without its message, what is still on its way belongs to that
# connect to no address resets a connection at once; shutdown would let what still arrives be read (connect(2)).
_LIBC, _NOBODY = ctypes.CDLL(None), bytes(16)  # struct sockaddr of AF_UNSPEC
_DESCRIPTORS = Path("/proc/self/fd")
_LAST_RECEIVED_MS = struct.Struct("=52xI")  # of struct tcp_info: tcpi_last_data_recv
_SENT = struct.Struct("=200xQ")  # tcpi_bytes_sent
_UNREAD = struct.Struct("=i")
_RECEIVED = struct.Struct("=128xQ")  # tcpi_bytes_received


@dataclass
class _Seen:
    """What is known of a connection.

    Attributes:
        received: Bytes, at the last look.
        unfinished: Those of them that are no whole message yet.
        sent: What the transport had sent when the first of the loose ones came.
        loose: Those since the last look that found a call.
        asked: Whether they were loose already when the server was last asked to come round.
        confirmed: Whether it has come round since, and they were still loose.
    """

    received: int
    unfinished: int
    sent: int
    loose: int = 0
    asked: bool = False
    confirmed: bool = False


class Connections:
    """Bounds the accepted connections of one listening address.

    Args:
        address: What the server listens on: a TCP port, or the path of a Unix socket.
        find_calls: By connection with a call whose message has not come, how many bytes such messages may hold; and
            the connections with any call. None: the transport does not know, and any connection may have one.
        is_behind: Whether calls have come that ``find_calls`` does not know yet.
        ask: Sends the server a call of our own. Once it is answered, ``find_calls`` knows every call that came before.
        limit: How many connections may be open; beyond it those are closed that have been silent for longest, of a
            Unix socket, where the kernel does not tell that, the newest.
        max_unfinished_bytes: How many bytes of unfinished messages may be held over all connections; beyond it the
            connection that has sent the most is closed.
    """

    def __init__(
        self,
        address: int | str,
        limit: int,
        max_unfinished_bytes: int,
        find_calls: Callable[[], tuple[Mapping[str, int], Container[str]]] | None = None,
        is_behind: Callable[[], bool] = lambda: False,
        ask: Callable[[], grpc.Future] | None = None,
    ) -> None:
        self._address = address
        self._find_calls = find_calls
        self._is_behind = is_behind
        self._ask = ask
        self._asked: grpc.Future | None = None
        self._limit = limit
        self._max_unfinished_bytes = max_unfinished_bytes
        self._lock = threading.Lock()
        self._delivered: dict[str, int] = {}  # by connection, since the last look
        self._refused: Counter[str] = Counter()  # the same, of calls; written by one thread, without the lock
        self._excused: dict[str, float] = {}  # by connection, until when
        self._seen: dict[str, _Seen] = {}
        self._came: list[
            int
        ] = []  # the connections of a Unix socket, by their numbers, in the order in which they came
        self._closed: set[int] = set()  # those of them that were closed
        self._stop = threading.Event()

    def start(self) -> None:
        """Look again and again, in a thread."""
        if sys.platform == "linux":
            threading.Thread(target=self._watch, name="connections", daemon=True).start()

    def count_message(self, connection: str, size_bytes: int) -> None:
        """Note that a whole message has arrived.

        Args:
            connection: Its name, such as ``ipv4:10.0.0.7:51200``; any other where the transport does not know.
            size_bytes: The message's.
        """
        with self._lock:
            self._delivered[connection] = self._delivered.get(connection, 0) + size_bytes + CALL_BYTES

    def excuse(self, connection: str) -> None:
        """Note that a call has ended whose message had begun: too large, say, so that the transport throws it away."""
        with self._lock:
            self._excused[connection] = time.monotonic() + EXCUSED_S

    def count_refusal(self, connection: str) -> None:
        """Note that a call ended whose message was not looked at. From one thread only, which takes no lock."""
        self._refused[connection] += 1

    def close(self, reasons: Mapping[str, str]) -> None:
        """Close connections by their names, those that are still open, each for its reason."""
        with _accepted(self._address) as connections:
            for one in filter(_is_open, connections):
                with suppress(OSError):  # its peer may just have gone
                    if (why := reasons.get(_name(one))) is not None:
                        self._close(one, why)

    def finish(self, wait_s: float) -> None:
        """Accept no more connections, send no more on any, and give clients ``wait_s`` seconds to close theirs.

        What was sent before arrives; a call that was not answered ends with UNAVAILABLE at its client. The shutdown of
        grpc's core would end those that have not reached their handler with CANCELLED, which no client retries.
        """
        self._stop.set()
        if sys.platform != "linux":
            return
        with _sockets_at(self._address) as sockets:
            for descriptor, one in sockets:
                if _is_listening(one):
                    # In its place, where nobody connects: grpc's core would log an error of one that does not listen.
                    with socket.socket(socket.AF_UNIX) as deaf:
                        deaf.bind("")  # to a name that the kernel draws
                        deaf.listen()
                        deaf.setblocking(False)
                        os.dup2(deaf.fileno(), descriptor)
        finished: set[int] = set()
        until = time.monotonic() + wait_s
        while True:
            with _accepted(self._address) as connections:
                for one in connections:
                    number = os.fstat(one.fileno()).st_ino
                    if number not in finished:
                        finished.add(number)
                        _shut_down(one, socket.SHUT_WR)
                if time.monotonic() >= until or not any(map(_is_open, connections)):
                    return
            time.sleep(0.01)

    def sweep(self) -> bool:
        """Close connections that are too many, and those that hold too much.

        Returns:
            Whether one holds so much that the next look should come soon.
        """
        busy_before = self._find_calls()[1] if self._find_calls else ()  # those that end meanwhile are among them
        with self._lock:
            delivered, self._delivered = self._delivered, {}
            now = time.monotonic()
            self._excused = {name: until for name, until in self._excused.items() if until > now}
            excused = set(self._excused)
        refused, self._refused = self._refused, Counter()
        if isinstance(self._address, str):
            self._close_newest()
            return False
        behind = self._is_behind()
        came_round = self._asked is not None and self._asked.done() and self._asked.code() is grpc.StatusCode.OK
        if self._asked is not None and self._asked.done():
            self._asked = None
        with _accepted(self._address) as connections:
            open_now = {}
            for one in filter(_is_open, connections):
                with suppress(OSError):  # its peer may just have gone
                    open_now[_name(one)] = one
            counted = {name: _count_bytes(one) for name, one in open_now.items()}
            waiting, busy = self._find_calls() if self._find_calls else (None, ())
            seen = {}
            for name, one in open_now.items():
                received, sent = counted[name]
                before = self._seen.get(name, _Seen(0, 0, 0))
                finished = delivered.get(name, 0) + refused[name] * REFUSED_BYTES
                unfinished = before.unfinished + received - before.received - finished
                loose, asked, confirmed, sent_before = 0, False, False, sent
                if waiting is not None and not behind:  # beyond that, grpc throws away a message that is too large
                    unfinished = min(unfinished, waiting.get(name, 0))
                calls = bool(finished or name in busy_before or name in busy or name in excused)
                if waiting is not None and not calls:
                    loose = max(0, before.loose + received - before.received - CALL_BYTES)
                    if before.loose:
                        asked, confirmed, sent_before = before.asked, before.confirmed, before.sent
                # grpc answers calls that died before anybody knew of them, and headers that never end not at all.
                if (sent - sent_before) * LOOSE_FOR_EACH_SENT > loose:
                    loose, asked, confirmed, sent_before = 0, False, False, sent
                # What answers them may be on its way to the wire when the server has come round: one more look.
                if loose > SURELY_LOOSE_BYTES or (loose > LOOSE_BYTES and confirmed):
                    self._close(one, f"{loose} bytes belong to no call, the limit is {LOOSE_BYTES}")
                    continue
                confirmed = confirmed or (asked and came_round)
                asked = asked and self._asked is not None
                seen[name] = _Seen(received, max(0, unfinished), sent_before, loose, asked, confirmed)
            self._ask_about([one for one in seen.values() if one.loose > LOOSE_BYTES])
            self._seen = seen
            total = sum(one.unfinished for one in seen.values())
            unknown = sum(size for name, size in delivered.items() if name not in open_now)
            if total and unknown:  # messages of some of these connections
                for held in seen.values():
                    held.unfinished = int(held.unfinished * max(0.0, 1 - unknown / total))
                total = sum(one.unfinished for one in seen.values())
            if (excess := len(open_now) - self._limit) > 0:
                silent = sorted(open_now, key=lambda name: _LAST_RECEIVED_MS.unpack_from(_tcp_info(open_now[name]))[0])
                for name in silent[-excess:]:
                    self._close(open_now[name], f"{len(open_now)} connections are open, the limit is {self._limit}")
            for name in sorted(seen, key=lambda name: -seen[name].unfinished):
                if total <= self._max_unfinished_bytes:
                    break
                size = seen[name].unfinished
                total -= size
                self._close(
                    open_now[name],
                    f"unfinished messages hold more than {self._max_unfinished_bytes} bytes, this connection's {size}",
                )
            loosest = max((one.loose for one in seen.values()), default=0)
            return loosest > LOOSE_BYTES // 4 or total > self._max_unfinished_bytes // 4

    def _close_newest(self) -> None:
        """Close connections of a Unix socket that are too many."""
        with _accepted(self._address) as connections:
            open_now = {os.fstat(one.fileno()).st_ino: one for one in connections}
            self._came = [number for number in self._came if number in open_now]
            self._came += sorted(open_now.keys() - self._came)
            self._closed &= open_now.keys()  # what the transport has not let go yet
            staying = [number for number in self._came if number not in self._closed]
            for number in staying[self._limit :]:
                self._close(open_now[number], f"{len(staying)} connections are open, the limit is {self._limit}")
                self._closed.add(number)

    def _watch(self) -> None:
        pause_s = SWEEP_S
        while not self._stop.wait(pause_s):
            started, pressed = time.thread_time(), False
            try:
                pressed = self.sweep()
            except Exception:
                log.exception("connections could not be looked at")
            least_s, looks = (PRESSED_S, PRESSED_LOOKS) if pressed else (SWEEP_S, LOOKS)
            pause_s = max(least_s, looks * (time.thread_time() - started))

    def _ask_about(self, suspects: list[_Seen]) -> None:
        """Let the server come round once, so that calls which it does not know yet are no reason to suspect anybody."""
        if suspects and self._asked is None and self._ask is not None:
            self._asked = self._ask()
            for suspect in suspects:
                suspect.asked = True

    def _close(self, connection: socket.socket, why: str) -> None:
        log.warning("connection closed: %s", why)
        if connection.family == socket.AF_UNIX:
            _shut_down(connection, socket.SHUT_RDWR)
            return
        _LIBC.connect(connection.fileno(), _NOBODY, len(_NOBODY))


@contextmanager
def _accepted(address: int | str) -> Iterator[list[socket.socket]]:
    """Those of the sockets that have a peer."""
    with _sockets_at(address) as sockets:
        yield [one for _, one in sockets if not _is_listening(one)]


@contextmanager
def _sockets_at(address: int | str) -> Iterator[list[tuple[int, socket.socket]]]:
    """Descriptors of this process's sockets at an address, each with a duplicate for as long as the block runs."""
    found: list[tuple[int, socket.socket]] = []
    try:
        for descriptor in _DESCRIPTORS.iterdir():
            with suppress(OSError):
                if not descriptor.is_socket():
                    continue
                one = socket.socket(fileno=os.dup(int(descriptor.name)))
                name = one.getsockname()
                if name == address if isinstance(address, str) else name[1:2] == (address,):
                    found.append((int(descriptor.name), one))
                else:
                    one.close()
        yield found
    finally:
        for _, one in found:
            one.close()


def _is_listening(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _shut_down(one: socket.socket, how: int) -> None:
    with suppress(OSError):  # the peer may have gone
        one.shutdown(how)


def _is_open(one: socket.socket) -> bool:
    """Whether the peer has not closed its side; of a Unix socket that is not known."""
    return one.family != socket.AF_UNIX and _tcp_info(one)[0] in (1, 4, 5)  # ESTABLISHED, FIN_WAIT1, FIN_WAIT2


def _tcp_info(one: socket.socket) -> bytes:
    return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)


def _count_bytes(one: socket.socket) -> tuple[int, int]:
    """The bytes that the transport has read (those in the kernel it has not), and those that it has sent."""
    info = _tcp_info(one)
    (received,), (sent,) = _RECEIVED.unpack_from(info), _SENT.unpack_from(info)
    (unread,) = _UNREAD.unpack(fcntl.ioctl(one.fileno(), termios.FIONREAD, bytes(_UNREAD.size)))
    return received - unread, sent


def _name(one: socket.socket) -> str:
    """A connection as grpc calls it: ``ipv4:HOST:PORT`` or ``ipv6:%5BHOST%5D:PORT``."""
    host, port = one.getpeername()[:2]
    host = host.removeprefix("::ffff:")
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
