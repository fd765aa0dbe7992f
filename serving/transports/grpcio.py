"""gRPC by grpcio's threaded server: the Classifier service, health and reflection on one port."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.batching import Batcher, Call
from serving.errors import AddressUnavailable, RequestError
from serving.limits import Limits
from serving.services.classifier import Classifier
from serving.services.status import CODES, DOMAIN, INTERNAL_REASON, RETRY_AFTER_S, reason_of
from serving.wire import classifier_pb2, classifier_pb2_grpc

log = logging.getLogger(__name__)

CLASSIFIER = classifier_pb2.DESCRIPTOR.services_by_name["Classifier"].full_name
MESSAGE_CHARACTERS, FACT_CHARACTERS = 400, 100  # a status travels in trailers, of which clients take 8 KiB
SETTLE_S = 0.2  # for requests that have arrived and not yet reached their thread
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
SERVICES = (CLASSIFIER, health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1)
STREAM_THREADS = 96  # beside those of requests: health watches and reflection streams hold one each

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class GrpcioServer:
    """A gRPC server that reports its health and drains before it stops.

    Args:
        classifier: the service.
        batcher: its batcher; as many threads as it admits requests.
        host: interface to listen on.
        port: port, or 0 for a free one.
        limits: ``max_request_bytes``.

    Attributes:
        port: the port listened on.

    Raises:
        AddressUnavailable: the address cannot be bound.
    """

    def __init__(self, classifier: Classifier, batcher: Batcher, host: str, port: int, limits: Limits) -> None:
        threads = batcher.slots + limits.max_queue + STREAM_THREADS
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            options=[
                ("grpc.so_reuseport", 0),  # else a second server would silently share the port
                ("grpc.max_receive_message_length", limits.max_request_bytes),
            ],
        )
        self._servicer = _ClassifierServicer(classifier)
        self._health = health.HealthServicer(experimental_non_blocking=True)
        self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        classifier_pb2_grpc.add_ClassifierServicer_to_server(  # type: ignore[no-untyped-call]
            self._servicer, self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_reflection(self._server)
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen on {host}:{port}: is the port in use? ({error})") from error

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
        cut = self._servicer.wait_until_idle(until - time.monotonic())
        self._server.stop(0)  # health watches would hold the server for the whole grace
        return cut


class _ClassifierServicer(classifier_pb2_grpc.ClassifierServicer):
    """Between grpcio and the service: calls, errors and the count of requests in flight."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._changed = threading.Condition()
        self._in_flight = 0

    def wait_until_idle(self, timeout_s: float) -> int:
        """Wait until no request is in flight; returns how many still are."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight == 0, timeout_s)
            return self._in_flight

    def Predict(
        self, request: classifier_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> classifier_pb2.PredictResponse:
        return self._answer(self._classifier.predict, request, context)

    def GetModel(
        self, request: classifier_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> classifier_pb2.GetModelResponse:
        return self._answer(self._classifier.get_model, request, context)

    def _answer(
        self, method: Callable[[Request, Call], Reply], request: Request, context: grpc.ServicerContext
    ) -> Reply:
        self._count(1)
        if not context.add_callback(lambda: self._count(-1)):  # called when the reply has left, or the caller
            self._count(-1)
        try:
            return method(request, _GrpcioCall(context))
        except RequestError as error:
            _abort(context, error)
        except Exception:
            _abort_internal(context)

    def _count(self, change: int) -> None:
        with self._changed:
            self._in_flight += change
            self._changed.notify_all()


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


def _abort(context: grpc.ServicerContext, error: RequestError) -> NoReturn:
    facts = {name: _shorten(value, FACT_CHARACTERS) for name, value in error.facts.items()}
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason_of(type(error)), domain=DOMAIN, metadata=facts)]
    if type(error) in RETRY_AFTER_S:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(RETRY_AFTER_S[type(error)] * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    _abort_with(context, grpc.StatusCode[CODES[type(error)]], _shorten(str(error), MESSAGE_CHARACTERS), details)


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _abort_internal(context: grpc.ServicerContext) -> NoReturn:
    """Log the traceback under an id, and tell the client the id alone."""
    error_id = uuid.uuid4().hex[:12]
    log.exception("internal error %s", error_id)
    info = error_details_pb2.ErrorInfo(reason=INTERNAL_REASON, domain=DOMAIN, metadata={"id": error_id})
    message = f"internal error {error_id}: the server's log has the cause under this id"
    _abort_with(context, grpc.StatusCode.INTERNAL, message, [info])


def _abort_with(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, details: list[Any]) -> NoReturn:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)
    raise AssertionError("abort returned")


def _add_reflection(server: grpc.Server) -> None:
    """Register reflection as v1alpha, which grpcio ships, and as v1, which tools ask for: the messages are the same."""
    servicer = reflection.ReflectionServicer(SERVICES)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for service in (reflection.SERVICE_NAME, REFLECTION_V1):
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler}),)
        )
