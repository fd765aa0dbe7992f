"""The gRPC server on pygrpc-native, which implements HTTP/2 in Rust, without Python's global interpreter lock.

Each slot is a thread that receives inference calls in the batches in which they arrived, and runs them. All other calls
go to grpcio behind the same port.

While every slot is busy, one more thread refuses calls beyond the limits and removes cancelled calls.

Calls with large images or large messages, and those with images for slow networks, are answered like those of grpcio
(``inference.Work``), so that no slot waits for them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message_factory import GetMessageClass
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from evalmode.errors import AddressUnavailable, DeadlineExpired, MessageInvalid, RequestCancelled, RequestError
from serving.engine.batch import Batch, Request, check_alive, reason_dead, run_together
from serving.engine.batching import Load, queue_too_long
from serving.services.backend import Backend
from serving.services.inference import Service, Timed, Unparsed, Work
from serving.services.models import Entry
from serving.threads import join_threads
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
from serving.transports.refusals import refuse

INFER_METHODS = (PREDICT, MODEL_INFER)
MAX_EVENTS = 4096  # events received at once
RESOURCE_EXHAUSTED = 8  # the gRPC status code
SHARE_S = 0.006  # work that a slot takes at once: larger batches gain nothing, and another slot may be free
WATCH_S = 0.002  # between two looks at arrived calls while every slot is busy
# The network of a photo. A slot that decodes its images uses 0.85 of a core, since it waits for other threads now and
# then. Threads that decode in addition to the slots use the rest, and passing such requests on costs little.
SLOW_RUN_S = 0.002
LARGE_BYTES = 2**19  # parsing a smaller message takes less time than passing it to another thread
TICK_S = 0.02  # the transport ends a call at most this long before its deadline by this process's clock
IDLE_MS = 500  # how long a free slot waits for calls before it checks whether the server is closed
SETTLE_S = 0.2  # for replies that are not sent yet: the transport does not report when they are


@dataclass(eq=False, slots=True)
class _Call:
    """A call in flight.

    Attributes:
        id: The transport's number of the call.
        method: The index of its method in ``INFER_METHODS``.
        payload: Its message, b"" once it is set aside.
        arrived: The time of its arrival, by ``time.perf_counter``.
        deadline: Its deadline, by the same clock.
        ahead: The number of calls in flight when it arrived.
        is_cancelled: Whether the client has cancelled it.
        aside: Whether ``work`` answers it instead of a slot.
        work: Its request, if it is set aside.
    """

    id: int
    method: int
    payload: bytes
    arrived: float
    deadline: float
    ahead: int
    is_cancelled: bool = False
    aside: bool = False
    work: Work | None = None

    def time_remaining_s(self) -> float:
        return min(self.deadline - time.perf_counter(), threading.TIMEOUT_MAX)

    def waited_s(self) -> float:
        return time.perf_counter() - self.arrived

    def cancelled(self) -> bool:
        return self.is_cancelled


@dataclass(eq=False, kw_only=True)
class _Ready(Request):
    """A request that is ready to run.

    Attributes:
        source: The call in flight. The request's own ``call`` may have an earlier deadline.
        write: Returns the reply for the outputs.
        decode_us: The time for parsing and decoding, in microseconds.
    """

    source: _Call
    write: Callable[[Timed], Any]
    decode_us: int


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
        self._statistics = inference.statistics
        self._budget = inference.budget
        self._limits = limits
        self._folder = make_socket_folder()
        socket = str(Path(self._folder.name) / "grpcio")
        try:
            self._front = NativeGrpcFront(
                address,
                [(path_of(method), False) for method in INFER_METHODS],
                call_details=True,
                max_concurrent_streams=STREAMS,
                reuse_port=reuse_port,
            )
        except OSError as error:
            raise AddressUnavailable(f"cannot listen on {address}: the port may be in use ({error})") from error
        self.port = self._front.bound_port
        # The port could lead to another process.
        self.local_address = f"unix:{socket}" if reuse_port else find_local(address, self.port)
        # Twice as much as with grpcio: a message over the limit is buffered, too, before it can be refused.
        unfinished_bytes = 2 * max(MIN_UNFINISHED_BYTES, UNFINISHED_MESSAGES * limits.max_request_bytes)
        self._connections = Connections(self.port, *limit_connections(backend, unfinished_bytes))
        self._others = GrpcioServer(backend, f"unix:{socket}", connections=self._connections)
        self._front.set_fallback(socket)
        self._batcher = inference.batcher
        self._slots, self._free_slots = self._batcher.slots, 0  # each is free once its thread receives
        self._share = 1  # how many calls a slot takes at once
        self._changed = threading.Condition()  # guards the attributes below, and the free slots
        self._calls: dict[int, _Call] = {}  # in flight
        self._aside = 0  # the number of them that are set aside
        self._waiting: deque[_Call] = deque()  # those that arrived while every slot was busy
        self._draining = self._closed = False
        self._full = threading.Event()  # every slot is busy
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._slots)]
        self._threads.append(threading.Thread(target=self._watch, daemon=True))

    def start(self) -> None:
        """See ``GrpcioServer``."""
        self._others.start()
        self._connections.start()
        self._front.start()
        for thread in self._threads:
            thread.start()

    def show(self, entries: Iterable[Entry]) -> None:
        """See ``GrpcioServer``."""
        self._others.show(entries)

    def load(self) -> Load:
        """The current load."""
        others = self._others.load()  # requests of streams
        with self._changed:
            busy = self._slots - self._free_slots + others.slots_busy
            return Load(
                self._slots,
                busy,
                len(self._waiting) + others.waiting,
                len(self._calls) - self._aside + others.in_flight,
            )

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
            self._full.set()

    def _work(self) -> None:
        """The loop of one slot: receive calls and answer them until the transport is closed."""
        while True:
            with self._changed:
                calls = [self._waiting.popleft() for _ in range(min(self._share, len(self._waiting)))]
                waited = bool(calls)
                if not waited:
                    self._free_slots += 1
                    if not self._closed:
                        self._full.clear()
            if len(calls) < self._share:
                events = self._receive(self._share - len(calls), wait=not waited)
                if events is None:
                    return
                with self._changed:
                    fresh, refused = self._admit(events)
                    if not waited:
                        self._free_slots -= 1
                        if not self._free_slots:
                            self._full.set()
                calls += fresh
                self._fail_all(refused)
            try:
                self._run(calls, waited)
            except Exception as error:  # an internal error must not end the slot
                for call in calls:
                    if call.id in self._calls and not call.aside:
                        self._end([call])
                        self._fail(call, error)

    def _receive(self, limit: int, wait: bool) -> list[Any] | None:
        """Receive events, after ``wait`` at least one; None if the server is closed.

        Closing the front end wakes only one waiting thread, so that each checks again every ``IDLE_MS``.
        """
        events: list[Any] | None = self._front.recv_batch_details(limit, IDLE_MS if wait else 0)
        while wait and events == []:
            events = self._front.recv_batch_details(limit, IDLE_MS)
        return events

    def _watch(self) -> None:
        """While every slot is busy, refuse calls beyond the limits and remove cancelled ones."""
        while not self._closed:
            self._full.wait()
            time.sleep(WATCH_S)
            with self._changed:
                if self._free_slots:
                    continue
                events = self._front.recv_batch_details(MAX_EVENTS, 0)
                if events is None:
                    return
                calls, refused = self._admit(events)
                self._waiting += calls
            self._fail_all(refused)

    def _admit(self, events: list[Any]) -> tuple[list[_Call], list[tuple[_Call, Exception]]]:
        """Process events.

        Returns:
            The new calls, and those that are refused, each with the error.
        """
        now = time.perf_counter()
        cancelled = {event[1] for event in events if event[0] == EVENT_CANCEL}
        self._cancel(filter(None, map(self._calls.get, cancelled)), now)
        calls: list[_Call] = []
        refused: list[tuple[_Call, Exception]] = []
        for kind, call_id, method, payload, _, details in events:
            if kind == EVENT_CANCEL or call_id in cancelled:
                continue
            self._connections.count_message(details[1], len(payload))
            until = math.inf if details[2] is None else now + details[2]
            call = _Call(call_id, method, payload, now, until, len(self._calls) - self._aside)
            try:
                self._check(call, find_authorization(details[0]))
            except (RequestError, _TransportError) as error:
                if isinstance(error, RequestError):
                    self._statistics.count_refusal(None, 0.0, error)
                refused.append((call, error))
            else:
                self._calls[call_id] = call
                calls.append(call)
        return calls, refused

    def _cancel(self, calls: Iterable[_Call], now: float) -> None:
        """End waiting calls that the transport reports as ended: they were cancelled, or their deadline passed."""
        for call in calls:
            late = call.deadline < now + TICK_S
            call.is_cancelled = not late
            if call.work is not None:
                call.work.withdraw()
            elif call in self._waiting:
                self._waiting.remove(call)
                self._end([call])
                error = DeadlineExpired("while waiting") if late else RequestCancelled("while waiting")
                self._statistics.count_refusal(None, now - call.arrived, error)

    def _check(self, call: _Call, authorization: str) -> None:
        """Check that a call can be admitted.

        Raises:
            RequestError: The call is refused.
            _TransportError: Its message is too large.
        """
        if self._draining:
            raise make_leaving()
        if len(call.payload) > self._limits.max_request_bytes:
            raise _TransportError(
                RESOURCE_EXHAUSTED,
                f"message larger than max ({len(call.payload)} vs. {self._limits.max_request_bytes})",
            )
        if self._access:
            self._access.check(path_of(INFER_METHODS[call.method]), authorization)
        if len(self._calls) >= self._slots + self._limits.max_queue:
            raise self._batcher.queue_full()
        if call.ahead >= self._slots and self._batcher.pace.expect_s(call.ahead) > call.time_remaining_s():
            raise queue_too_long()

    def _fail_all(self, refused: list[tuple[_Call, Exception]]) -> None:
        """Refuse calls that were not admitted."""
        for call, error in refused:
            self._fail(call, error)

    def _end(self, calls: Iterable[_Call]) -> None:
        """Release the places of calls. This comes before their replies, which clients may answer with new calls."""
        with self._changed:
            for call in calls:
                del self._calls[call.id]
                self._aside -= call.aside
            if not self._calls:
                self._changed.notify_all()

    def _run(self, calls: list[_Call], waited: bool) -> None:
        """Read calls, run them in batches and answer them.

        Args:
            calls: The calls.
            waited: Whether they waited for a slot. Those that cannot meet their deadline any more are then refused.
        """
        ready = []
        for call in calls:
            try:
                if (request := self._read(call)) is not None:
                    ready.append(request)
            except Exception as error:
                self._end([call])
                self._fail(call, error)
        while ready:
            batch = Batch[_Ready](self._limits.max_batch)
            left = []
            for request in ready:
                needed_s = request.model.expect_s(request.rows) if waited and not batch.requests else 0.0
                if batch.requests and not batch.has_room_for(request):
                    left.append(request)
                elif (dead := reason_dead(request.call, needed_s)) is not None:
                    self._refuse(request, dead)
                else:
                    batch.add(request)
            if batch.requests:
                self._answer(batch.requests)
                first = batch.requests[0]
                pace_s = first.model.expect_s(first.rows)
                self._share = max(1, min(self._limits.max_batch, int(SHARE_S / pace_s) if pace_s else MAX_EVENTS))
            ready, waited = left, True

    def _read(self, call: _Call) -> _Ready | None:
        """Parse and decode the request of a call; None if that takes long, so that another thread does it."""
        started = time.perf_counter()
        service, payload, parse = self._services[call.method], call.payload, self._parse[call.method]
        if len(payload) > LARGE_BYTES:
            self._set_aside(call, lambda: parse_message(parse, payload), len(payload))
            return None
        try:
            request = parse_message(parse, payload)
        except MessageInvalid as error:
            self._statistics.count_refusal(None, 0.0, error)
            raise
        model = None
        try:
            model = service.find(request)
            check_alive(call)
            reading = service.begin(request, model, call)
            slow = reading.cost_bytes and model.expect_s(1) > SLOW_RUN_S
            if slow or not self._budget.is_small(reading.cost_bytes):
                self._set_aside(call, lambda: request)
                return None
            read = reading.finish()
        except Exception as error:
            self._statistics.count_refusal(model, time.perf_counter() - started, error)
            raise
        decode_us = round((time.perf_counter() - started) * 1e6)
        return _Ready(
            *(model, read.inputs, read.call, call.arrived, read.optional),
            source=call,
            write=read.write,
            decode_us=decode_us,
        )

    def _set_aside(self, call: _Call, parse: Callable[[], Any], size_bytes: int = 0) -> None:
        """Let other threads answer a call.

        Args:
            call: The call.
            parse: Returns its request.
            size_bytes: The memory that ``parse`` takes.
        """
        call.payload, call.aside = b"", True
        with self._changed:
            self._aside += 1
            call.work = Work(
                *(self._inference, self._services[call.method], Unparsed(parse, size_bytes), call),
                partial(self._finish_aside, call),
                self._others.later,
            )

    def _finish_aside(self, call: _Call, outcome: Any) -> None:
        """End a call that was set aside with its reply or its error."""
        self._end([call])
        if isinstance(outcome, Exception):
            self._fail(call, outcome)
        else:
            self._front.respond(call.id, outcome.SerializeToString())

    def _answer(self, batch: list[_Ready]) -> None:
        """Run requests as one batch. If that fails, run each alone: the error may be due to one of them."""
        started = time.perf_counter()
        try:
            # Calls that have arrived but are not received yet are unknown; the other slots would receive them.
            alone = len(self._calls) == 1 and self._free_slots == self._slots - 1 and not self._batcher.in_flight
            answers = run_together(batch, self._statistics.count_run, alone)
        except Exception as error:
            if len(batch) == 1:
                self._refuse(batch[0], error)
                return
            for request in batch:
                if dead := reason_dead(request.call):
                    self._refuse(request, dead)
                else:
                    self._answer([request])
            return
        ended = time.perf_counter()
        self._end(request.source for request in batch)
        replies = []
        for request, outputs in zip(batch, answers, strict=True):
            wait_us = max(0, round((started - request.arrived) * 1e6) - request.decode_us)
            self._batcher.pace.note(ended - request.source.arrived, request.source.ahead)
            timed = Timed(outputs, request.decode_us, wait_us, round((ended - started) * 1e6))
            try:
                self._statistics.count_answer(request.model, request.inputs, *timed)
                replies.append((request.source.id, request.write(timed).SerializeToString()))
            except Exception as error:
                self._fail(request.source, error)
        for call_id, reply in replies:  # together, so that they are sent together
            self._front.respond(call_id, reply)

    def _refuse(self, request: _Ready, error: Exception) -> None:
        """Count a refused request and end its call."""
        self._statistics.count_refusal(request.model, time.perf_counter() - request.arrived, error)
        self._end([request.source])
        self._fail(request.source, error)

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
