"""gRPC by pygrpc-native, whose HTTP/2 runs in Rust, outside Python's lock.

Calls that infer are handed over in the batches in which they arrived, and a thread that takes them runs them: here the
transport is the batcher. Every other call goes to grpcio behind the same port.

One thread more than there are slots: one always receives, so that what is too much is refused, and who has gone away is
forgotten, while every slot is busy.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from serving.batch import Batch, Request, check_alive, reason_dead, run_together
from serving.batching import Batcher, queue_full
from serving.errors import AddressUnavailable
from serving.limits import Limits
from serving.services import classifier, open_inference
from serving.services.inference import Service, Timed
from serving.services.statistics import Statistics
from serving.transports.grpcio import GrpcioServer
from serving.transports.refusals import refuse

HOT = (
    classifier.DESCRIPTOR.methods_by_name["Predict"],
    open_inference.DESCRIPTOR.methods_by_name["ModelInfer"],
)
RECEIVED = 4096  # events taken at once, at most
INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE = 13, 8, 14  # what the transport itself answers, without a reason
SETTLE_S = 0.2  # for answers that are not on the wire yet: the transport does not say when they are


@dataclass(eq=False)
class _Call:
    """A call that has arrived."""

    id: int
    method: int
    payload: bytes
    arrived: float
    deadline: float
    gone: bool = False  # its caller

    def time_remaining_s(self) -> float:
        return min(self.deadline - time.perf_counter(), threading.TIMEOUT_MAX)

    def cancelled(self) -> bool:
        return self.gone

    def wake_on_cancel(self, event: threading.Event) -> None:
        pass


@dataclass(eq=False)
class _Ready(Request):
    """A request that has been read, and the arrived call that it is the contents of."""

    of: _Call
    write: Callable[[Timed], Any]
    decode_us: int


class NativeServer:
    """The same server as ``GrpcioServer``, faster, without TLS; see there.

    Args:
        ours: the service of ``evalmode.v1``.
        theirs: the service of the Open Inference Protocol.
        batcher: where what does not infer by itself runs: streams.
        statistics: where answers and refusals are counted.
        host: interface to listen on.
        port: port, or 0 for a free one.
        limits: of requests, batches and the queue.

    Attributes:
        port: the port listened on.

    Raises:
        AddressUnavailable: the address cannot be bound.
    """

    def __init__(
        self,
        ours: classifier.Classifier,
        theirs: open_inference.OpenInference,
        batcher: Batcher,
        statistics: Statistics,
        host: str,
        port: int,
        limits: Limits,
    ) -> None:
        self._services: tuple[Service, ...] = (ours, theirs)
        self._parse = [GetMessageClass(method.input_type).FromString for method in HOT]
        self._statistics = statistics
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="evalmode-")
        socket = str(Path(self._folder.name) / "grpcio")
        self._others = GrpcioServer(ours, theirs, batcher, f"unix:{socket}", limits)
        try:
            self._front = NativeGrpcFront(
                f"{host}:{port}", [(_path(method), False) for method in HOT], call_details=True
            )
        except OSError as error:
            raise AddressUnavailable(f"cannot listen on {host}:{port}: is the port in use? ({error})") from error
        self._front.set_fallback(socket)
        self.port = self._front.bound_port
        self._receiving = threading.Lock()  # held by the one thread that receives
        self._changed = threading.Condition()  # guards what follows
        self._slots = self._free_slots = batcher.slots
        self._waiting: deque[_Call] = deque()
        self._calls: dict[int, _Call] = {}  # in flight
        self._draining = False
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(batcher.slots + 1)]

    def start(self) -> None:
        """Begin to answer, healthy."""
        self._others.start()
        self._front.start()
        for thread in self._threads:
            thread.start()

    def announce_shutdown(self) -> None:
        """Tell every health watcher NOT_SERVING, for good, while requests are still answered."""
        self._others.announce_shutdown()

    def drain(self, grace_s: float) -> int:
        """Refuse new requests, wait for those in flight, cut what is left after ``grace_s``.

        Returns:
            How many requests were cut.
        """
        until = time.monotonic() + grace_s
        with self._changed:
            self._draining = True
        cut = self._others.drain(max(0.0, until - time.monotonic()))
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, max(0.0, until - time.monotonic()))
            cut += len(self._calls)
        time.sleep(SETTLE_S)
        self._front.close()
        self._folder.cleanup()
        return cut

    def _serve(self) -> None:
        """Receive, or run what waits, in turns with the other threads."""
        while True:
            refused = []
            with self._receiving:
                waited = self._take()
                fresh: list[_Call] = []
                if not waited:
                    events = self._front.recv_batch_details(RECEIVED)
                    if events is None:
                        return
                    refused = self._sort_in(events)
                    fresh = self._take()
            for call, error in refused:
                self._fail(call, error)
            if fresh:
                self._run(fresh, waited=False)
                waited = self._take(again=True)
            while waited:
                self._run(waited, waited=True)
                waited = self._take(again=True)

    def _sort_in(self, events: list[Any]) -> list[tuple[_Call, Exception | None]]:
        """Queue new calls, forget those that were cancelled; returns what must be refused, None for the drain."""
        now = time.perf_counter()
        refused: list[tuple[_Call, Exception | None]] = []
        with self._changed:
            places = self._slots + self._limits.max_queue
            gone = {event[1] for event in events if event[0] == EVENT_CANCEL}
            for call in filter(None, map(self._calls.get, gone)):
                call.gone = True
                if call in self._waiting:
                    self._waiting.remove(call)
                    del self._calls[call.id]
            for kind, call_id, method, payload, _, details in events:
                if kind == EVENT_CANCEL or call_id in gone:
                    continue
                remaining = math.inf if details[2] is None else details[2]
                call = _Call(call_id, method, payload, now, now + remaining)
                if self._draining:
                    refused.append((call, None))
                elif len(self._calls) >= places:
                    refused.append((call, queue_full(places)))
                else:
                    self._calls[call.id] = call
                    self._waiting.append(call)
        return refused

    def _take(self, again: bool = False) -> list[_Call]:
        """What one slot runs next, of what waits, leaving other free slots their share; ``again``: a slot is held."""
        with self._changed:
            if again:
                self._free_slots += 1
            if not self._waiting or not self._free_slots:
                return []
            count = min(self._limits.max_batch, math.ceil(len(self._waiting) / self._free_slots))
            self._free_slots -= 1
            return [self._waiting.popleft() for _ in range(count)]

    def _run(self, calls: list[_Call], waited: bool) -> None:
        """Read calls, run them in batches, answer; one that waited and would be done too late is not begun."""
        ready = []
        for call in calls:
            try:
                ready.append(self._read(call))
            except Exception as error:
                self._fail(call, error)
                self._end(call)
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
            ready, waited = left, True

    def _read(self, call: _Call) -> _Ready:
        started = time.perf_counter()
        check_alive(call)
        if len(call.payload) > self._limits.max_request_bytes:
            raise _TransportError(
                RESOURCE_EXHAUSTED,
                f"message larger than max ({len(call.payload)} vs. {self._limits.max_request_bytes})",
            )
        service = self._services[call.method]
        try:
            request = self._parse[call.method](call.payload)
        except DecodeError as error:
            raise _TransportError(INTERNAL, "the request cannot be parsed") from error
        model = service.find(request)
        try:
            read = service.read(request, model, call)
            check_alive(read.call)
        except Exception:
            self._statistics.count_refusal(model, time.perf_counter() - started)
            raise
        decode_us = round((time.perf_counter() - started) * 1e6)
        return _Ready(model, read.inputs, read.call, call.arrived, call, read.write, decode_us)

    def _answer(self, batch: list[_Ready]) -> None:
        """Run calls as one batch; where that fails, each alone: one's values must not cost the others' answers."""
        started = time.perf_counter()
        try:
            answers = run_together(batch, self._statistics.count_run)
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
        inference_us = round((time.perf_counter() - started) * 1e6)
        for request, outputs in zip(batch, answers, strict=True):
            wait_us = max(0, round((started - request.arrived) * 1e6) - request.decode_us)
            timed = Timed(outputs, request.decode_us, wait_us, inference_us)
            spent = {"compute_input": request.decode_us, "queue": wait_us, "compute_infer": inference_us}
            self._statistics.count_answer(request.model, request.rows, spent)
            try:
                reply = request.write(timed).SerializeToString()
                self._front.respond(request.of.id, reply)
            except Exception as error:
                self._fail(request.of, error)
            finally:
                self._end(request.of)

    def _refuse(self, request: _Ready, error: Exception) -> None:
        """End a call whose model is known."""
        self._statistics.count_refusal(request.model, time.perf_counter() - request.arrived)
        self._fail(request.of, error)
        self._end(request.of)

    def _fail(self, call: _Call, error: Exception | None) -> None:
        """End a call with a status; None: because the server is leaving."""
        if error is None:
            self._front.fail(call.id, UNAVAILABLE, "the server is shutting down")
        elif isinstance(error, _TransportError):
            self._front.fail(call.id, error.code, str(error))
        else:
            refusal = refuse(error)
            self._front.fail(call.id, refusal.code, refusal.message, trailing_metadata=refusal.trailers)

    def _end(self, call: _Call) -> None:
        with self._changed:
            del self._calls[call.id]
            if not self._calls:
                self._changed.notify_all()


class _TransportError(Exception):
    """What grpcio's transport refuses by itself, without a reason of ours."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"
