"""gRPC by grpcio's threaded server: the Classifier service, health and reflection on one port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.batch import Call
from serving.batching import Batcher, Load
from serving.errors import AddressUnavailable, RequestError, StreamsFull
from serving.limits import Limits
from serving.services import classifier, open_inference
from serving.services.access import Access
from serving.services.models import Entry
from serving.transports.refusals import refuse

STATUSES = {status.value[0]: status for status in grpc.StatusCode}
SETTLE_S = 0.2  # for requests that have arrived and not yet reached their thread
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
CONTRACTS = (classifier.DESCRIPTOR, open_inference.DESCRIPTOR)
SERVICES = (*(one.full_name for one in CONTRACTS), health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1)
SPARE_THREADS = 8  # beside those of requests and streams: to refuse what is too much
HEALTH_THREADS = 4

Health = health_pb2.HealthCheckResponse
Handler = Callable[[Any, Call], Any]


class GrpcioServer:
    """A gRPC server that reports its health and drains before it stops.

    Args:
        ours: the service of ``evalmode.v1``.
        theirs: the service of the Open Inference Protocol.
        batcher: where both run; as many threads as it admits requests.
        address: HOST:PORT, of which PORT may be 0 for a free one, or unix:PATH.
        limits: ``max_request_bytes`` and ``max_streams``.
        access: who may call what; None: everybody everything.
        credentials: TLS; None: plain text.
        reflect: tell whoever asks what can be called.

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
        access: Access | None = None,
        credentials: grpc.ServerCredentials | None = None,
        reflect: bool = True,
    ) -> None:
        threads = batcher.slots + limits.max_queue + limits.max_streams + SPARE_THREADS
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            interceptors=[_Guard(access)] if access else [],
            options=[
                ("grpc.so_reuseport", 0),  # else a second server would silently share the port
                ("grpc.max_receive_message_length", limits.max_request_bytes),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # clients may look whether we are there
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 60_000),  # and we at them: who vanished frees the places of its streams
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        self._batcher = batcher
        self._calls = _Calls(limits.max_streams)
        self._health = _make_health()
        self._health.set("", Health.NOT_SERVING)
        self._shown: Iterable[str] = ()
        self._theirs = theirs
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        one, other = classifier.DESCRIPTOR, open_inference.DESCRIPTOR
        stream = {"ModelStreamInfer": _make_stream(theirs, self._calls)}
        reflection_calls = {"ServerReflectionInfo": _make_reflection(self._calls)}
        methods = {
            one.full_name: _make_methods(one, ours.handlers, self._calls),
            other.full_name: _make_methods(other, theirs.handlers, self._calls) | stream,
            # v1alpha is what grpcio ships, v1 what tools ask for: the messages are the same.
            **(dict.fromkeys((reflection.SERVICE_NAME, REFLECTION_V1), reflection_calls) if reflect else {}),
        }
        services = [grpc.method_handlers_generic_handler(name, calls) for name, calls in methods.items()]
        self._server.add_generic_rpc_handlers(services)
        try:
            self.port = (
                self._server.add_secure_port(address, credentials)
                if credentials
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen on {address}: is the port in use? ({error})") from error

    def start(self) -> None:
        """Begin to answer, healthy."""
        self._server.start()
        for service in ("", *SERVICES):
            self._health.set(service, Health.SERVING)

    def show(self, entries: Iterable[Entry]) -> None:
        """Let clients ask and watch the health of a model by its name, and of a version by NAME/VERSION."""
        ready: dict[str, bool] = {}
        for entry in entries:
            ready[f"{entry.name}/{entry.version}"] = entry.ready
            ready[entry.name] = ready.get(entry.name, False) or entry.ready
        told = {name: Health.SERVING if is_ready else Health.NOT_SERVING for name, is_ready in ready.items()}
        for name, status in {**dict.fromkeys(self._shown, Health.SERVICE_UNKNOWN), **told}.items():
            self._health.set(name, status)
        self._shown = told.keys()

    def load(self) -> Load:
        """How much the server has to do."""
        return self._batcher.load()

    def announce_shutdown(self) -> None:
        """Tell whoever asks or watches that this server is not ready, for good, while requests are still answered."""
        self._theirs.announce_shutdown()
        self._health.enter_graceful_shutdown()

    def drain(self, grace_s: float) -> int:
        """Refuse new requests, wait for those in flight, cut what is left after ``grace_s``.

        Returns:
            How many requests were cut.
        """
        until = time.monotonic() + grace_s
        stopped = self._server.stop(grace_s + 1)  # refuses from now on; who is cut is counted here, before
        stopped.wait(min(SETTLE_S, grace_s))
        cut = self._calls.wait_until_quiet(until)
        self._server.stop(0)  # health watches would hold the server for the whole grace
        return cut


class _Guard(grpc.ServerInterceptor):  # type: ignore[misc]
    """Ends calls that may not be made, before their messages are received."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def intercept_service(self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails) -> Any:
        told = dict(details.invocation_metadata).get("authorization", "")
        try:
            self._access.check(details.method, told)
        except RequestError as error:
            denied = error  # the name of an exception ends with its clause

            def deny(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
                _abort(context, denied)

            return grpc.stream_stream_rpc_method_handler(deny)  # whatever was called: this kind waits for no message
        return continuation(details)


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
        self._more = False  # whether a request has begun since somebody looked

    def wait_until_quiet(self, until: float) -> int:
        """Wait until no request is in flight and no open stream brings another; returns how many still are.

        A stream may have sent several requests, and between two of them none is in flight. One that is only open is
        not waited for.

        Args:
            until: when to give up, by ``time.monotonic``.
        """
        with self._changed:
            while self._changed.wait_for(lambda: self.requests == 0, until - time.monotonic()) and self.streams:
                self._more = False
                if not self._changed.wait_for(lambda: self._more, min(SETTLE_S, until - time.monotonic())):
                    break
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
            self._more |= requests > 0
            self.streams += streams
            self._changed.notify_all()


def _make_health() -> health.HealthServicer:
    """Health with threads of its own: a call whose message is slow to come holds one of the server's."""
    threads = ThreadPoolExecutor(HEALTH_THREADS, thread_name_prefix="health")
    servicer = health.HealthServicer(experimental_non_blocking=True, experimental_thread_pool=threads)
    check = partial(servicer.Check)  # grpcio reads the threads off what it calls
    check.experimental_thread_pool = threads  # type: ignore[attr-defined]
    servicer.Check = check
    return servicer


def _make_methods(
    contract: ServiceDescriptor, handlers: Mapping[str, Handler], calls: _Calls
) -> dict[str, grpc.RpcMethodHandler]:
    """What grpcio wants to know of a service's calls that are no streams, by name."""
    return {
        method.name: grpc.unary_unary_rpc_method_handler(_make_unary(handlers[method.name], calls), *_formats(method))
        for method in contract.methods
        if not method.client_streaming
    }


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
                yield service.infer_streamed(request, call, refuse)

    method = open_inference.DESCRIPTOR.methods_by_name["ModelStreamInfer"]
    return grpc.stream_stream_rpc_method_handler(answer, *_formats(method))


class _GrpcioCall:
    """What a request knows of its caller, from grpcio's context; those of a stream share one."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context
        self._waiting = threading.Event()  # of the request that waits now
        # Once a call: grpcio keeps callbacks until its end, which may be thousands of requests away.
        self._over = False
        if not context.add_callback(self._end):
            self._end()

    def time_remaining_s(self) -> float:
        remaining = self._context.time_remaining()
        return threading.TIMEOUT_MAX if remaining is None else min(remaining, threading.TIMEOUT_MAX)

    def waited_s(self) -> float:
        return 0.0

    def cancelled(self) -> bool:
        return not self._context.is_active()

    def wake_on_cancel(self, event: threading.Event) -> None:
        self._waiting = event
        if self._over:
            event.set()

    def _end(self) -> None:
        self._over = True
        self._waiting.set()


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    refusal = refuse(error)
    context.set_trailing_metadata(refusal.trailers)
    context.abort(STATUSES[refusal.code], refusal.message)
    raise AssertionError("abort returned")


def _make_reflection(calls: _Calls) -> grpc.RpcMethodHandler:
    """Reflection as grpcio ships it, with its streams counted."""
    servicer = reflection.ReflectionServicer(SERVICES)

    def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        calls.enter_stream(context)
        yield from servicer.ServerReflectionInfo(requests, context)

    return grpc.stream_stream_rpc_method_handler(
        answer,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
