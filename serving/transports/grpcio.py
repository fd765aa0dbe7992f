"""gRPC by grpcio's threaded server: the Classifier service, health and reflection on one port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.batching import Batcher, Call
from serving.errors import AddressUnavailable, StreamsFull
from serving.limits import Limits
from serving.services import classifier, open_inference
from serving.transports.refusals import refuse

STATUSES = {status.value[0]: status for status in grpc.StatusCode}
SETTLE_S = 0.2  # for requests that have arrived and not yet reached their thread
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
CONTRACTS = (classifier.DESCRIPTOR, open_inference.DESCRIPTOR)
SERVICES = (*(one.full_name for one in CONTRACTS), health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1)
SPARE_THREADS = 8  # beside those of requests and streams: for health checks, and to refuse what is too much

Handler = Callable[[Any, Call], Any]


class GrpcioServer:
    """A gRPC server that reports its health and drains before it stops.

    Args:
        ours: the service of ``evalmode.v1``.
        theirs: the service of the Open Inference Protocol.
        batcher: where both run; as many threads as it admits requests.
        address: HOST:PORT, of which PORT may be 0 for a free one, or unix:PATH.
        limits: ``max_request_bytes`` and ``max_streams``.

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
        address: str,
        limits: Limits,
    ) -> None:
        threads = batcher.slots + limits.max_queue + limits.max_streams + SPARE_THREADS
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            options=[
                ("grpc.so_reuseport", 0),  # else a second server would silently share the port
                ("grpc.max_receive_message_length", limits.max_request_bytes),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # clients may look whether we are there
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        self._calls = _Calls(limits.max_streams)
        self._health = health.HealthServicer(experimental_non_blocking=True)
        self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_service(self._server, classifier.DESCRIPTOR, ours.handlers, self._calls)
        _add_service(self._server, open_inference.DESCRIPTOR, theirs.handlers, self._calls)
        streamed = {"ModelStreamInfer": _make_stream(theirs, self._calls)}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(open_inference.DESCRIPTOR.full_name, streamed),)
        )
        _add_reflection(self._server, self._calls)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen on {address}: is the port in use? ({error})") from error

    def start(self) -> None:
        """Begin to answer, healthy."""
        self._server.start()
        for service in ("", *SERVICES):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def announce_shutdown(self) -> None:
        """Tell every health watcher NOT_SERVING, for good, while requests are still answered."""
        self._health.enter_graceful_shutdown()

    def drain(self, grace_s: float) -> int:
        """Refuse new requests, wait for those in flight, cut what is left after ``grace_s``.

        Returns:
            How many requests were cut.
        """
        until = time.monotonic() + grace_s
        stopped = self._server.stop(grace_s + 1)  # refuses from now on; who is cut is counted here, before
        stopped.wait(min(SETTLE_S, grace_s))
        cut = self._calls.wait_until_idle(until - time.monotonic())
        self._server.stop(0)  # health watches would hold the server for the whole grace
        return cut


class _Calls:
    """Counts the requests in flight, and bounds the open streams: each holds a thread for as long as it is open.

    Args:
        max_streams: how many may be open.
    """

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._changed = threading.Condition()
        self.requests = 0
        self.streams = 0

    def wait_until_idle(self, timeout_s: float) -> int:
        """Wait until no request is in flight; returns how many still are. Open streams are not waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self.requests == 0, timeout_s)
            return self.requests

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request for as long as it lasts."""
        self._change(1, 0)
        try:
            yield
        finally:
            self._change(-1, 0)

    def enter(self, context: grpc.ServicerContext) -> None:
        """Count a request until its reply has left, or its caller."""
        self._change(1, 0)
        if not context.add_callback(lambda: self._change(-1, 0)):
            self._change(-1, 0)

    def enter_stream(self, context: grpc.ServicerContext) -> None:
        """Count a stream until it ends; refuse one too many."""
        with self._changed:
            full = self.streams >= self._max_streams
            self.streams += not full
        if full:
            _abort(
                context,
                StreamsFull(
                    f"{self._max_streams} streams are open already, the limit: close some, or call without a stream",
                    limit_streams=self._max_streams,
                ),
            )
        if not context.add_callback(lambda: self._change(0, -1)):
            self._change(0, -1)

    def _change(self, requests: int, streams: int) -> None:
        with self._changed:
            self.requests += requests
            self.streams += streams
            self._changed.notify_all()


def _add_service(
    server: grpc.Server, contract: ServiceDescriptor, handlers: Mapping[str, Handler], calls: _Calls
) -> None:
    """Register the calls of a service that are no streams."""
    methods = {
        method.name: grpc.unary_unary_rpc_method_handler(_make_unary(handlers[method.name], calls), *_formats(method))
        for method in contract.methods
        if not method.client_streaming
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(contract.full_name, methods),))


def _formats(method: MethodDescriptor) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    """How a request is parsed and its reply is written."""
    return GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type).SerializeToString


def _make_unary(handler: Handler, calls: _Calls) -> Callable[[Any, grpc.ServicerContext], Any]:
    """What grpcio calls for a request: errors become statuses."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        calls.enter(context)
        try:
            return handler(request, _GrpcioCall(context))
        except Exception as error:
            _abort(context, error)

    return answer


def _make_stream(service: open_inference.OpenInference, calls: _Calls) -> grpc.RpcMethodHandler:
    """ModelStreamInfer, in the order of the requests: what is wrong with one becomes its answer."""

    def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        calls.enter_stream(context)
        call = _GrpcioCall(context)
        for request in requests:
            with calls.request():
                yield service.infer_streamed(request, call, lambda error: refuse(error).message)

    method = open_inference.DESCRIPTOR.methods_by_name["ModelStreamInfer"]
    return grpc.stream_stream_rpc_method_handler(answer, *_formats(method))


class _GrpcioCall:
    """What a request knows of its caller, from grpcio's context."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def time_remaining_s(self) -> float:
        remaining = self._context.time_remaining()
        return threading.TIMEOUT_MAX if remaining is None else min(remaining, threading.TIMEOUT_MAX)

    def cancelled(self) -> bool:
        return not self._context.is_active()

    def wake_on_cancel(self, event: threading.Event) -> None:
        if not self._context.add_callback(event.set):
            event.set()  # already over


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    refusal = refuse(error)
    context.set_trailing_metadata(refusal.trailers)
    context.abort(STATUSES[refusal.code], refusal.message)
    raise AssertionError("abort returned")


def _add_reflection(server: grpc.Server, calls: _Calls) -> None:
    """Register reflection as v1alpha, which grpcio ships, and as v1, which tools ask for: the messages are the same."""
    servicer = reflection.ReflectionServicer(SERVICES)

    def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        calls.enter_stream(context)
        yield from servicer.ServerReflectionInfo(requests, context)

    handler = grpc.stream_stream_rpc_method_handler(
        answer,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for service in (reflection.SERVICE_NAME, REFLECTION_V1):
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler}),)
        )
