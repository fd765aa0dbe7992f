"""The gRPC server on pygrpc-native, which implements HTTP/2 in Rust, without Python's global interpreter lock.

One thread per slot receives inference calls in the batches in which they arrived, and runs them if a slot is free. All
other calls go to grpcio behind the same port.

While all of these threads run networks, one more thread receives calls, so that excess calls are refused and cancelled
ones removed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message_factory import GetMessageClass
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from evalmode.errors import AddressUnavailable, RequestError
from serving.engine.scheduler import Load
from serving.services.backend import Backend
from serving.services.inference import Service, Unparsed, Work
from serving.services.loaded import Entry
from serving.threads import join_threads, start_threads
from serving.transports.addresses import find_local
from serving.transports.connections import Connections
from serving.transports.grpcio import (
    JOIN_S,
    MIN_UNFINISHED_BYTES,
    MODEL_INFER,
    PREDICT,
    STREAMS,
    UNFINISHED_MESSAGES,
    GrpcioServer,
    limit_connections,
    make_socket_folder,
)
from serving.transports.handlers import find_authorization, make_leaving, path_of
from serving.transports.messages import parse_message
from serving.transports.outcomes import serialize
from serving.transports.refusals import refuse

INFER_METHODS = (PREDICT, MODEL_INFER)
MAX_EVENTS = 16  # events received at once
RESOURCE_EXHAUSTED = 8  # the gRPC status code
SLOTS_PER_IO_THREAD = 4  # a thread for HTTP/2 keeps up with several slots, and each more costs changes of threads
WATCH_S = 0.01  # between two looks at arrived calls while every receiving thread runs a network
TICK_S = 0.02  # the transport ends a call at most this long before its deadline by this process's clock
IDLE_MS = 500  # how long a free slot waits for calls before it checks whether the server is closed
SETTLE_S = 0.2  # for replies that are not sent yet: the transport does not report when they are


@dataclass(eq=False, slots=True)
class _Call:
    """A call in flight.

    Attributes:
        id: The transport's number of the call.
        arrived: The time of its arrival, by ``time.monotonic``.
        deadline: Its deadline, by the same clock; ``math.inf`` if it has none.
        is_cancelled: Whether the client has cancelled it.
        is_ended: Whether the transport has ended it.
        work: Its request.
    """

    id: int
    arrived: float
    deadline: float
    is_cancelled: bool = False
    is_ended: bool = False
    work: Work | None = None

    def cancelled(self) -> bool:
        return self.is_cancelled


class NativeServer:
    """The counterpart of ``GrpcioServer`` on pygrpc-native: faster, without TLS. See there.

    Args:
        backend: What it serves.
        address: HOST:PORT, where port 0 means a free port.
        reuse_port: Whether other processes of this server listen on the same port.

    Attributes:
        port: The port it listens on.
        local_address: The address at which this machine can reach the server.

    Raises:
        AddressUnavailable: The address cannot be bound.
        ThreadsUnavailable: The system cannot start enough threads.
    """

    def __init__(self, backend: Backend, address: str, reuse_port: bool = False) -> None:
        limits, inference = backend.limits, backend.inference
        self._access = backend.access
        self._services: tuple[Service, ...] = (backend.classifier, backend.open_inference)
        self._parse = [GetMessageClass(method.input_type).FromString for method in INFER_METHODS]
        self._inference = inference
        self._limits = limits
        with ExitStack() as opened:  # closed at once if anything fails
            self._folder = make_socket_folder()
            opened.callback(self._folder.cleanup)
            socket = str(Path(self._folder.name) / "grpcio")
            try:
                self._front = NativeGrpcFront(
                    address,
                    [(path_of(method), False) for method in INFER_METHODS],
                    call_details=True,
                    max_concurrent_streams=STREAMS,
                    reuse_port=reuse_port,
                    io_threads=max(1, inference.executor.slots // SLOTS_PER_IO_THREAD),
                )
            except OSError as error:
                raise AddressUnavailable(f"cannot listen on {address}: the port may be in use ({error})") from error
            opened.callback(self._front.close)
            self.port = self._front.bound_port
            # The port could lead to another process.
            self.local_address = f"unix:{socket}" if reuse_port else find_local(address, self.port)
            # Twice as much as with grpcio: a message over the limit is buffered, too, before it can be refused.
            unfinished_bytes = 2 * max(MIN_UNFINISHED_BYTES, UNFINISHED_MESSAGES * limits.max_request_bytes)
            self._connections = Connections(self.port, *limit_connections(backend, unfinished_bytes))
            self._others = GrpcioServer(backend, f"unix:{socket}", connections=self._connections)
            opened.pop_all()
        self._front.set_fallback(socket)
        self._calls: dict[int, _Call] = {}  # in flight; each change is one operation of the interpreter
        self._changed = threading.Condition()  # guards the attributes below; no call is in flight any more
        self._receiving = 0  # the number of threads that wait for calls
        self._draining = self._closed = False
        self._unattended = threading.Event()  # no thread waits for calls
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """See ``GrpcioServer``."""
        self._others.start()
        self._connections.start()
        self._front.start()
        self._threads += start_threads(self._inference.executor.slots, "calls", self._serve)
        self._threads += start_threads(1, "watch", self._watch)

    def show(self, entries: Iterable[Entry]) -> None:
        """See ``GrpcioServer``."""
        self._others.show(entries)

    def load(self) -> Load:
        """The current load."""
        return self._inference.executor.load()

    def announce_shutdown(self) -> None:
        """See ``GrpcioServer``."""
        self._others.announce_shutdown()

    def drain(self, grace_s: float) -> int:
        """Refuse new requests, and answer those in flight.

        Args:
            grace_s: Seconds after which the remaining requests are cut.

        Returns:
            The number of requests that were cut.
        """
        until = time.monotonic() + grace_s
        with self._changed:
            self._draining = True
        cut = self._others.drain(max(0.0, until - time.monotonic()))
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, max(0.0, until - time.monotonic()))
            cut += len(self._calls)
        time.sleep(SETTLE_S)
        self._connections.finish(0.0)
        self._end_front()
        return cut

    def close(self) -> None:
        """See ``GrpcioServer``."""
        self._connections.stop()
        if not self._closed:
            self._end_front()
        self._others.close()
        join_threads(self._threads, JOIN_S)

    def _end_front(self) -> None:
        """Close the port, and end the threads."""
        self._front.close()
        self._folder.cleanup()
        with self._changed:
            self._closed = True
            self._unattended.set()

    def _serve(self) -> None:
        """Receive calls and run what may run, until the transport is closed."""
        executor, ran = self._inference.executor, False
        while (events := self._receive(wait=not ran)) is not None:
            if events:
                with executor.receiving():
                    self._begin_all(events)
            ran = executor.help()
            while not executor.has_free_slot() and not self._closed:  # other threads receive what can run
                time.sleep(WATCH_S)
                ran = True  # something may wait for the slot that is free afterwards

    def _receive(self, wait: bool) -> list[Any] | None:
        """Receive events, after ``wait`` at least one; None if the server is closed.

        Closing the front end wakes only one waiting thread, so that each checks again every ``IDLE_MS``.
        """
        if not wait:
            events: list[Any] | None = self._front.recv_batch_details(MAX_EVENTS, 0)
            return events
        with self._changed:
            self._receiving += 1
            if not self._closed:
                self._unattended.clear()
        events = []
        while events == []:
            events = self._front.recv_batch_details(MAX_EVENTS, IDLE_MS)
        with self._changed:
            self._receiving -= 1
            if not self._receiving:
                self._unattended.set()
        return events

    def _watch(self) -> None:
        """While no other thread receives calls, receive them."""
        while not self._closed:
            self._unattended.wait()
            time.sleep(WATCH_S)
            if self._receiving:
                continue
            events = self._front.recv_batch_details(MAX_EVENTS, 0)
            if events is None:
                return
            with self._inference.executor.receiving():
                self._begin_all(events)
            self._inference.executor.start()  # in threads of its own: this one continues to receive

    def _begin_all(self, events: list[Any]) -> None:
        """Begin the calls that have arrived, and withdraw those that have ended. One may do both at once.

        The list is empty afterwards, so that no message takes memory while networks run.
        """
        now = time.monotonic()
        cancelled = {event[1] for event in events if event[0] == EVENT_CANCEL}
        for call in filter(None, map(self._calls.get, cancelled)):
            call.is_cancelled = call.deadline >= now + TICK_S  # otherwise its deadline has passed
            call.is_ended = True
            if call.work is not None:
                call.work.withdraw()
        for kind, call_id, method, payload, _, details in events:
            if kind == EVENT_CANCEL:
                continue
            self._connections.count_message(details[1], len(payload))
            if call_id in cancelled:  # the transport has ended it, and keeps nothing of it
                continue
            call = _Call(call_id, now, math.inf if details[2] is None else now + details[2])
            try:
                self._check(method, len(payload), details[0])
            except (RequestError, _TransportError) as error:
                if isinstance(error, RequestError):
                    self._inference.statistics.count_refusal(None, 0.0, error)
                self._fail(call, error)
            else:
                self._begin(call, method, payload)
        events.clear()

    def _check(self, method: int, size_bytes: int, metadata: Any) -> None:
        """Check that a call is allowed.

        Raises:
            RequestError: The call is refused.
            _TransportError: Its message is too large.
        """
        if self._draining:
            raise make_leaving()
        if size_bytes > self._limits.max_request_bytes:
            raise _TransportError(
                RESOURCE_EXHAUSTED, f"message larger than max ({size_bytes} vs. {self._limits.max_request_bytes})"
            )
        if self._access:
            self._access.check(path_of(INFER_METHODS[method]), find_authorization(metadata))

    def _begin(self, call: _Call, method: int, payload: bytes) -> None:
        message = Unparsed(partial(parse_message, self._parse[method], payload), len(payload), serialize)
        self._calls[call.id] = call
        work = Work(
            self._inference, self._services[method], message, call, partial(self._end, call), self._others.later
        )
        if call.id in self._calls:
            call.work = work
            if call.is_ended:  # meanwhile another thread has received the cancellation
                work.withdraw()

    def _end(self, call: _Call, outcome: Any) -> None:
        """End a call with its reply or its error."""
        del self._calls[call.id]
        if self._draining and not self._calls:
            with self._changed:
                self._changed.notify_all()
        call.work = None
        if isinstance(outcome, Exception):
            self._fail(call, outcome)
        else:
            self._front.respond(call.id, outcome)

    def _fail(self, call: _Call, error: Exception) -> None:
        """End a call with the status of an error."""
        if isinstance(error, _TransportError):
            self._front.fail(call.id, error.code, str(error))
        else:
            refusal = refuse(error)
            self._front.fail(call.id, refusal.code, refusal.message, trailing_metadata=refusal.trailers)


class _TransportError(Exception):
    """An error of the transport layer, which has a status code but no reason, as with grpcio."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
