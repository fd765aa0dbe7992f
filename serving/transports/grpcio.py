"""The gRPC server on grpcio's asyncio API: the services of both protocols, health and reflection on one port.

One thread runs the event loop and the handlers of ``serving.transports.handlers``. grpcio's own thread feeds the loop
and runs no Python code. A call that waits for its message or its reply occupies no thread.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from evalmode.errors import AddressUnavailable
from evalmode.limits import Limits
from serving.engine.scheduler import Load
from serving.engine.shared_limits import SharedLimit
from serving.services import classifier, open_inference
from serving.services.backend import Backend
from serving.services.loaded import Entry
from serving.threads import Threads, join_threads, start_threads
from serving.transports.addresses import find_local
from serving.transports.calls import RECEIVING, RUNNING, SENDING, Calls
from serving.transports.connections import Connections
from serving.transports.handlers import Handlers, make_leaving
from serving.transports.health import Health
from serving.transports.loop import Loop
from serving.transports.messages import NO_INFLATION

log = logging.getLogger(__name__)

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
SERVICES = (
    *(classifier.DESCRIPTOR.full_name, open_inference.DESCRIPTOR.full_name, HEALTH.full_name),
    *(reflection.SERVICE_NAME, REFLECTION_V1),
)
PREDICT = classifier.DESCRIPTOR.methods_by_name["Predict"]
MODEL_INFER = open_inference.DESCRIPTOR.methods_by_name["ModelInfer"]
STREAM_INFER = open_inference.DESCRIPTOR.methods_by_name["ModelStreamInfer"]
Options: TypeAlias = tuple[tuple[str, int], ...]  # of grpc's core
STREAMS = 100  # concurrent calls of one connection, the minimum that RFC 9113, 6.5.2, recommends; further calls wait
CONTROL_THREADS = 8  # for calls that neither infer nor check health
SWEEP_S = 0.25
ASK_S = 5.0  # deadline of a health check that the server sends itself
FINISH_S = 1.0  # for clients to close their connections at the end
JOIN_S = 5.0  # for threads to end
SHARED_MEMORY = "/dev/shm"  # noqa: S108  Linux has it, also where the root is read-only
# The limit on messages that have arrived in part: two of the largest size, or 16 MiB if that is more.
UNFINISHED_MESSAGES, MIN_UNFINISHED_BYTES = 2, 16 * 2**20
OPTIONS: Options = (
    ("grpc.max_concurrent_streams", STREAMS),
    NO_INFLATION,
    ("grpc.http2.bdp_probe", 0),  # otherwise a client may send megabytes of a message that is not read yet
    ("grpc.http.overload_protection", 0),  # it would refuse calls below the limit on streams, too, with UNAVAILABLE
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # allows keepalive pings of clients
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),  # ends the streams of clients that have vanished
    ("grpc.keepalive_timeout_ms", 20_000),
)


class GrpcioServer:
    """A gRPC server that reports its health and drains before it stops.

    Args:
        backend: What it serves.
        address: HOST:PORT, where port 0 means a free port, or unix:PATH.
        credentials: The TLS credentials; None: plaintext.
        connections: The connections of the transport that forwards calls to this server; None: clients connect to
            this server itself.
        reuse_port: Whether other processes of this server listen on the same port.

    Attributes:
        port: The port it listens on.
        local_address: The address at which this machine can reach this process without TLS.

    Raises:
        AddressUnavailable: The address cannot be bound.
        ThreadsUnavailable: The system cannot start enough threads.
    """

    def __init__(
        self,
        backend: Backend,
        address: str,
        credentials: grpc.ServerCredentials | None = None,
        connections: Connections | None = None,
        reuse_port: bool = False,
    ) -> None:
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_of_interest)
        limits = backend.limits
        self._backend = backend
        self._health = Health()
        self._shown: Iterable[str] = ()
        self._behind = connections is not None
        self._sweeping: asyncio.Task[None] | None = None
        options = (("grpc.so_reuseport", int(reuse_port)), *OPTIONS)  # without it another server could share the port
        with ExitStack() as opened:  # closed at once if anything fails
            self._loop = Loop()
            opened.callback(self._loop.close)
            self._calls = Calls(limits.message_timeout)
            self._controls = Threads(CONTROL_THREADS, "control")
            opened.callback(self._controls.close)
            start_threads(1, "grpcio", lambda: None)  # grpcio crashes if it cannot start its own
            self._server, self.port = self._loop.run(self._open(address, limits, credentials, options))
            opened.callback(lambda: self._loop.run(self._stop()))
            self.local_address = find_local(address, self.port)
            if credentials or reuse_port:  # the port could lead to another process
                folder = opened.enter_context(make_socket_folder())
                self.local_address = f"unix:{folder}/grpcio"
                self._server.add_insecure_port(self.local_address)
            channel = grpc.insecure_channel(self.local_address, options=[("grpc.enable_http_proxy", 0)])
            opened.callback(channel.close)
            self._check_self = health_pb2_grpc.HealthStub(channel).Check
            self._connections = connections or Connections(
                address.removeprefix("unix:") if address.startswith("unix:") else self.port,
                *limit_connections(backend, UNFINISHED_MESSAGES * limits.max_request_bytes),
                partial(self._calls.find_connections, limits.max_request_bytes),
                self._loop.is_behind,
                self._ask_health,
            )
            if not self._behind:
                opened.callback(self._connections.stop)
            self._handlers = Handlers(backend, self._loop, self._calls, self._connections, self._controls)
            self._register(backend)
            self._resources = opened.pop_all()

    def start(self) -> None:
        """Answer calls, and report SERVING."""
        self._health.set({"": False})
        if not self._behind:
            self._connections.start()
        self._loop.run(self._start())
        self._health.set(dict.fromkeys(("", *SERVICES), True))

    def show(self, entries: Iterable[Entry]) -> None:
        """Publish the health of models: NAME stands for any version of a model, NAME/VERSION for one."""
        ready: dict[str, bool] = {}
        for entry in entries:
            ready[f"{entry.name}/{entry.version}"] = entry.ready
            ready[entry.name] = ready.get(entry.name, False) or entry.ready
        self._health.set(ready, forget=set(self._shown) - ready.keys())
        self._shown = ready.keys()

    def load(self) -> Load:
        """The current load."""
        return self._backend.inference.executor.load()

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function in the event loop after a delay. It can be called from any thread.

        Args:
            seconds: The delay.
            function: The function, which must not block.
        """
        self._loop.later(seconds, function)

    def announce_shutdown(self) -> None:
        """Report NOT_SERVING from now on. Requests are still answered."""
        self._backend.open_inference.announce_shutdown()
        self._health.leave()

    def drain(self, grace_s: float) -> int:
        """Refuse new requests, and answer those in flight.

        Args:
            grace_s: Seconds after which the remaining requests are cut.

        Returns:
            The number of requests that were cut.
        """
        until = time.monotonic() + grace_s
        cut: int = self._loop.run(self._finish_calls(until))
        if not self._behind:
            self._connections.finish(min(FINISH_S, max(0.2, until - time.monotonic())))
        self._resources.close()
        return cut

    def close(self) -> None:
        """Release what is left of a server that was drained, or never started, and wait for its threads."""
        self._resources.close()
        join_threads([*self._controls.threads, *self._loop.threads], JOIN_S)

    def _ask_health(self) -> grpc.Future:
        """Call Health.Check through the port. grpc's core passes calls on in the order of their arrival."""
        return self._check_self.future(health_pb2.HealthCheckRequest(), timeout=ASK_S)

    def _register(self, backend: Backend) -> None:
        """Register the handler of every method."""
        handlers = self._handlers
        served: dict[str, dict[str, grpc.RpcMethodHandler]] = defaultdict(dict)
        for contract, answers in (
            (classifier.DESCRIPTOR, backend.classifier.handlers),
            (open_inference.DESCRIPTOR, backend.open_inference.handlers),
        ):
            for name, answer in answers.items():
                served[contract.full_name][name] = handlers.control(contract.methods_by_name[name], answer)
        served[classifier.DESCRIPTOR.full_name][PREDICT.name] = handlers.infer(PREDICT, backend.classifier)
        inference = served[open_inference.DESCRIPTOR.full_name]
        inference[MODEL_INFER.name] = handlers.infer(MODEL_INFER, backend.open_inference)
        inference[STREAM_INFER.name] = handlers.stream_infer(STREAM_INFER, backend.open_inference)
        served[HEALTH.full_name]["Check"] = handlers.check(HEALTH.methods_by_name["Check"], self._health)
        served[HEALTH.full_name]["Watch"] = handlers.watch(HEALTH.methods_by_name["Watch"], self._health)
        if backend.reflection:
            self._add_reflection(served)
        for name, methods in served.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
        self._server.add_generic_rpc_handlers((handlers.unknown(),))

    def _add_reflection(self, served: dict[str, dict[str, grpc.RpcMethodHandler]]) -> None:
        """Add server reflection. grpcio implements v1alpha and clients prefer v1; their messages are the same."""
        servicer = reflection.ReflectionServicer(SERVICES)
        (method,) = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].methods

        def answer(request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
            return next(servicer.ServerReflectionInfo(iter([request]), None))

        for service in (reflection.SERVICE_NAME, REFLECTION_V1):
            served[service][method.name] = self._handlers.reflect(
                f"/{service}/{method.name}", answer, reflection_pb2.ServerReflectionRequest.FromString
            )

    async def _open(
        self, address: str, limits: Limits, credentials: grpc.ServerCredentials | None, options: Options
    ) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=(*options, ("grpc.max_receive_message_length", limits.max_request_bytes)))
        try:
            port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen on {address}: the port may be in use ({error})") from error
        return server, port

    async def _start(self) -> None:
        await self._server.start()
        self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                if late := self._calls.sweep():
                    await asyncio.to_thread(self._connections.close, late)  # it makes system calls for every connection
            except Exception:
                log.exception("calls could not be checked")

    async def _finish_calls(self, until: float) -> int:
        """Wait for the calls in flight, and return how many are left."""
        self._handlers.leaving = True
        for call in self._handlers.streams.list_calls():
            call.end(make_leaving())
        while (left := self._calls.count(RECEIVING, RUNNING, SENDING)) and time.monotonic() < until:
            await asyncio.sleep(0.005)
        return self._calls.count(RUNNING, SENDING) if left else 0

    async def _stop(self) -> None:
        if self._sweeping is None:  # it was not started, and grpc's core closes the port of a started server alone
            await self._server.start()
        else:
            self._sweeping.cancel()
        await self._server.stop(0)


def limit_connections(backend: Backend, unfinished_bytes: int) -> tuple[SharedLimit, SharedLimit]:
    """Return the limits on the connections of all workers, and on the bytes of their unfinished messages.

    Args:
        backend: Gives the limits and what counts in all workers.
        unfinished_bytes: The limit on bytes, unless ``MIN_UNFINISHED_BYTES`` is more.
    """
    return (
        SharedLimit(backend.limits.max_connections, backend.count("connections")),
        SharedLimit(max(MIN_UNFINISHED_BYTES, unfinished_bytes), backend.count("unfinished_bytes")),
    )


def make_socket_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder for a Unix socket that only this user can enter: a temporary one, otherwise in shared memory.

    Raises:
        AddressUnavailable: The folder cannot be created.
    """
    try:
        with suppress(OSError):
            return tempfile.TemporaryDirectory(prefix="evalmode-")
        return tempfile.TemporaryDirectory(prefix="evalmode-", dir=SHARED_MEMORY)  # writable on a read-only root, too
    except OSError as error:
        raise AddressUnavailable(
            f"cannot create a folder for a Unix socket ({error}): set TMPDIR to a folder that this user can write to"
        ) from error


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Whether a log record of grpcio is of interest. One that a client disconnected while it was answered is not."""
    return not str(record.msg).startswith("ExecuteBatchError raised in core")
