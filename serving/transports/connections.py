"""Limits on a server's connections: their number, and the memory that unfinished messages take over all of them.

Neither grpcio nor pygrpc-native reports how much of a message has arrived, and neither limits that over all
connections. The kernel counts the bytes that each connection has received, and the transports count the bytes that
became messages. The difference is unfinished. On systems other than Linux nothing is limited here.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextlib import suppress

import grpc

from serving.engine.shared_limits import SharedLimit
from serving.threads import start_threads
from serving.transports.sockets import (
    count_bytes,
    end_sending,
    find_connections,
    is_open,
    measure_silence_ms,
    name_peer,
    reset,
    stop_listening,
)
from serving.transports.unfinished import CALL_BYTES, MAX_STRAY_BYTES, Report, Seen, compare, deduct

log = logging.getLogger(__name__)

# A sweep begins this long after the one before, or later: sweeps take at most 1 / SWEEP_SHARE of a core.
SWEEP_S, SWEEP_SHARE = 0.1, 30
URGENT_SWEEP_S, URGENT_SWEEP_SHARE = 0.02, 5  # the same while a connection holds much
EXCUSED_S = 5.0  # what arrives within this time of a call that ended without its message may belong to that call


class Connections:
    """Limits the accepted connections of one listening address.

    Args:
        address: The address that the server listens on: a TCP port, or the path of a Unix socket.
        limit: The number of open connections in all workers. Beyond it, the connections that have been silent for
            longest are closed. On a Unix socket, where that is unknown, the newest connections are closed.
        unfinished_bytes: The bytes of unfinished messages over all connections. Beyond it, the connections with the
            most are closed.
        find_calls: Returns how many bytes the messages that have not arrived yet may hold, by connection, and the
            connections with any call. None: the transport does not know, and any connection may have a call.
        is_behind: Whether calls may have arrived that ``find_calls`` does not report yet.
        ask: Sends the server a health check. Once it is answered, ``find_calls`` reports every call that came before.
    """

    def __init__(
        self,
        address: int | str,
        limit: SharedLimit,
        unfinished_bytes: SharedLimit,
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
        self._unfinished_bytes = unfinished_bytes
        self._lock = threading.Lock()
        self._delivered: dict[str, int] = {}  # by connection, since the last sweep
        self._refused: Counter[str] = Counter()  # the same for calls; written by one thread, without the lock
        self._excused: dict[str, float] = {}  # by connection, until when
        self._seen: dict[str, Seen] = {}
        self._accepted: list[int] = []  # inodes of the connections of a Unix socket, the oldest first
        self._closed: set[int] = set()  # those of them that were closed, but not yet by the transport
        self._stop = threading.Event()

    def start(self) -> None:
        """Sweep repeatedly, in a thread, until ``stop``.

        Raises:
            ThreadsUnavailable: The system cannot start the thread.
        """
        if sys.platform == "linux":
            start_threads(1, "connections", self._watch)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()

    def count_message(self, connection: str, size_bytes: int) -> None:
        """Count a message that has arrived completely.

        Args:
            connection: The name of its connection, such as ``ipv4:10.0.0.7:51200``; any other if it is unknown.
            size_bytes: The size of the message.
        """
        with self._lock:
            self._delivered[connection] = self._delivered.get(connection, 0) + size_bytes + CALL_BYTES

    def excuse(self, connection: str) -> None:
        """Note that a call has ended whose message had begun, such as one that the transport discards as too large."""
        with self._lock:
            self._excused[connection] = time.monotonic() + EXCUSED_S

    def count_refusal(self, connection: str) -> None:
        """Count a call that ended before its message was read. Call it from one thread only: it takes no lock."""
        self._refused[connection] += 1

    def close(self, reasons: Mapping[str, str]) -> None:
        """Close connections.

        Args:
            reasons: The reason for each, by the name of the connection. Names of closed connections are ignored.
        """
        if sys.platform != "linux":
            return
        with find_connections(self._address) as connections:
            for one in filter(is_open, connections):
                with suppress(OSError):  # the peer may have disconnected
                    if (why := reasons.get(name_peer(one))) is not None:
                        _close(one, why)

    def finish(self, wait_s: float) -> None:
        """Accept no more connections, send no more on any, and give clients time to close their connections.

        What was sent before arrives, and a call that was not answered ends with UNAVAILABLE at its client. The shutdown
        of grpc's core would end calls that have not reached their handler with CANCELLED, which no client retries.

        Args:
            wait_s: Seconds to wait for clients.
        """
        self.stop()
        if sys.platform != "linux":
            return
        stop_listening(self._address)
        finished: set[int] = set()
        until = time.monotonic() + wait_s
        while True:
            with find_connections(self._address) as connections:
                for one in connections:
                    number = os.fstat(one.fileno()).st_ino
                    if number not in finished:
                        finished.add(number)
                        end_sending(one)
                if time.monotonic() >= until or not any(map(is_open, connections)):
                    return
            time.sleep(0.01)

    def sweep(self) -> bool:
        """Close connections beyond the limits.

        Returns:
            Whether the next sweep should follow soon, because unfinished messages or stray bytes hold much.
        """
        with_calls = self._find_calls()[1] if self._find_calls else ()  # some calls end before the second look
        delivered, refused, excused = self._take_counts()
        if isinstance(self._address, str):
            self._close_newest()
            return False
        behind = self._is_behind()
        answered = self._take_answer()
        with find_connections(self._address) as connections:
            open_now = {}
            for one in filter(is_open, connections):
                with suppress(OSError):  # the peer may have disconnected
                    open_now[name_peer(one)] = one
            counted = {name: count_bytes(one) for name, one in open_now.items()}
            waiting, with_calls_now = self._find_calls() if self._find_calls else ({}, ())
            report = Report(
                delivered,
                refused,
                (with_calls, with_calls_now, excused),
                waiting if self._find_calls and not behind else None,
                self._find_calls is not None,
                answered,
                self._asked is not None,
            )
            seen = {
                name: compare(self._seen.get(name, Seen(0, 0, 0)), name, counted[name], report) for name in open_now
            }
            for name in [name for name, one in seen.items() if one.closing]:
                stray = seen.pop(name).stray
                _close(open_now[name], f"{stray} bytes belong to no call, the limit is {MAX_STRAY_BYTES}")
            self._ask_about([one for one in seen.values() if one.stray > MAX_STRAY_BYTES])
            self._seen = seen
            deduct(seen, sum(size for name, size in delivered.items() if name not in open_now))
            self._close_excess(open_now)
            total = self._close_unfinished(open_now)
        most_stray = max((one.stray for one in seen.values()), default=0)
        return most_stray > MAX_STRAY_BYTES // 4 or total > self._unfinished_bytes.limit // 4

    def _take_counts(self) -> tuple[dict[str, int], Counter[str], set[str]]:
        """What was counted since the last sweep: bytes delivered, calls refused, connections excused."""
        with self._lock:
            delivered, self._delivered = self._delivered, {}
            now = time.monotonic()
            self._excused = {name: until for name, until in self._excused.items() if until > now}
            excused = set(self._excused)
        refused, self._refused = self._refused, Counter()
        return delivered, refused, excused

    def _take_answer(self) -> bool:
        """Whether the health check on its way was answered; if it has ended, the next one may be sent."""
        if self._asked is None or not self._asked.done():
            return False
        answered = self._asked.code() is grpc.StatusCode.OK
        self._asked = None
        return answered

    def _ask_about(self, suspects: list[Seen]) -> None:
        """Send a health check: once it is answered, no call of these connections is unknown any more."""
        if suspects and self._asked is None and self._ask is not None:
            self._asked = self._ask()
            for suspect in suspects:
                suspect.asked = True

    def _close_excess(self, open_now: Mapping[str, socket.socket]) -> None:
        """Close the connections beyond the limit on their number, those that are silent for longest."""
        excess = self._limit.measure_excess(len(open_now))
        if excess > 0:
            for one in sorted(open_now.values(), key=measure_silence_ms)[-excess:]:
                _close(one, f"{len(open_now)} connections are open, the limit is {self._limit.limit}")

    def _close_newest(self) -> None:
        """Close the connections of a Unix socket beyond the limit on their number, the newest."""
        with find_connections(self._address) as connections:
            open_now = {os.fstat(one.fileno()).st_ino: one for one in connections}
            self._accepted = [number for number in self._accepted if number in open_now]
            self._accepted += sorted(open_now.keys() - self._accepted)
            self._closed &= open_now.keys()
            kept = [number for number in self._accepted if number not in self._closed]
            for number in kept[self._limit.limit :]:
                _close(open_now[number], f"{len(kept)} connections are open, the limit is {self._limit.limit}")
                self._closed.add(number)

    def _close_unfinished(self, open_now: Mapping[str, socket.socket]) -> int:
        """Close connections until the rest hold few enough bytes of unfinished messages; return how many that are."""
        total = sum(one.unfinished for one in self._seen.values())
        excess = self._unfinished_bytes.measure_excess(total)
        for name, seen in sorted(self._seen.items(), key=lambda named: -named[1].unfinished):
            if excess <= 0:
                break
            total -= seen.unfinished
            excess -= seen.unfinished
            _close(
                open_now[name],
                f"unfinished messages hold more than {self._unfinished_bytes.limit} bytes, "
                f"{seen.unfinished} of them on this connection",
            )
        return total

    def _watch(self) -> None:
        pause_s = SWEEP_S
        while not self._stop.wait(pause_s):
            started, urgent = time.thread_time(), False
            try:
                urgent = self.sweep()
            except Exception:
                log.exception("connections could not be checked")
            min_s, share = (URGENT_SWEEP_S, URGENT_SWEEP_SHARE) if urgent else (SWEEP_S, SWEEP_SHARE)
            pause_s = max(min_s, share * (time.thread_time() - started))


def _close(connection: socket.socket, why: str) -> None:
    log.warning("connection closed: %s", why)
    reset(connection)
