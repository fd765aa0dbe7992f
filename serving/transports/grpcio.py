"""gRPC by grpcio's threaded server: the services, health and reflection on one port.

grpcio has one polling thread. It looks up the handler of each call (``Router``), refuses there, and runs the callbacks
of calls (``OpenCall._end``). Nothing there takes a lock, reads a file, logs or waits: a polling thread that waits for
what it would deliver itself never comes back, and no call is ever answered again.

Every method is registered as one that takes a stream of messages: its handler begins before the message has come, and
a call that sends none can be seen and ended.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.batch import Call
from serving.batching import Batcher, Load, queue_too_long
from serving.errors import AddressUnavailable, CallsFull, MessageInvalid, RequestError, StreamsFull, WatchesFull
from serving.limits import Limits
from serving.services import classifier, open_inference
from serving.services.access import Access
from serving.services.models import Entry
from serving.services.statistics import Statistics
from serving.transports.arrivals import Method, Router, abort, end, make_leaving
from serving.transports.calls import IDLE, RECEIVING, RUNNING, SENDING, Calls, OpenCall
from serving.transports.connections import Connections
from serving.transports.crowd import Arrival, Crowd
from serving.transports.health import Health
from serving.transports.messages import NO_INFLATION, Messages
from serving.transports.places import Places
from serving.transports.refusals import Refusal, Template, refuse
from serving.transports.threads import Lane

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
CONTRACTS = (classifier.DESCRIPTOR, open_inference.DESCRIPTOR)
SERVICES = (*(one.full_name for one in CONTRACTS), HEALTH, reflection.SERVICE_NAME, REFLECTION_V1)
INFERS = ("Predict", "ModelInfer")  # methods that take a place of the batcher
STREAMS = 256  # calls that one connection may have open: clients wait with the rest, within their deadlines
SPARE_THREADS = 128  # beside those of requests: for calls whose message has not come
CHECKS = 32  # threads for health checks
SPARE_STREAMS = 16  # threads for streams and watches that are refused by what is known only there
FINISH_S = 1.0  # for clients to close their connections at the end
UNFINISHED_MESSAGES = 2  # so many of the largest size may be held in parts

Handler = Callable[[Any, Call], Any]
Send = Callable[[bytes | None], None]  # None: the end of the stream


class GrpcioServer:
    """A gRPC server that reports its health and drains before it stops.

    Args:
        ours: The service of ``evalmode.v1``.
        theirs: The service of the Open Inference Protocol.
        batcher: Where both run.
        statistics: Where requests are counted that are refused on arrival.
        address: HOST:PORT, of which PORT may be 0 for a free one, or unix:PATH.
        limits: Of messages, calls, streams, watches and connections.
        access: Who may call what; None: everybody everything.
        credentials: TLS; None: plain text.
        reflect: Whether reflection is served.
        connections: Of the transport that this server stands behind; None: clients connect to this one.

    Attributes:
        port: The port listened on.
        local_address: Where this machine reaches it without TLS.

    Raises:
        AddressUnavailable: The address cannot be bound.
        ThreadsUnavailable: The system starts too few threads.
    """

    def __init__(
        self,
        ours: classifier.Classifier,
        theirs: open_inference.OpenInference,
        batcher: Batcher,
        statistics: Statistics,
        address: str,
        limits: Limits,
        access: Access | None = None,
        credentials: grpc.ServerCredentials | None = None,
        reflect: bool = True,
        connections: Connections | None = None,
    ) -> None:
        self._batcher = batcher
        self._theirs = theirs
        self._statistics = statistics
        self._health = Health()
        self._shown: Iterable[str] = ()
        self._calls = Calls(limits.message_timeout)
        self._unary = Lane(batcher.slots + limits.max_queue + SPARE_THREADS, "calls")
        self._crowd = Crowd(self._unary)
        self._messages = Messages(limits.max_request_bytes, batcher.slots)
        self._streams: Places[_Stream] = Places(limits.max_streams, lambda: _streams_full(limits.max_streams))
        self._stream_lane = Lane(limits.max_streams + SPARE_STREAMS, "streams")
        self._router = Router(batcher, access, statistics.refused, self._count_refusal)
        self._server = grpc.server(
            self._unary.threads,
            interceptors=[self._router],
            options=[
                ("grpc.so_reuseport", 0),  # else a second server would silently share the port
                ("grpc.max_receive_message_length", limits.max_request_bytes),
                ("grpc.max_concurrent_streams", STREAMS),
                NO_INFLATION,
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # clients may look whether we are there
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 60_000),  # and we at them: who vanished frees the places of its streams
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        try:
            self.port = (
                self._server.add_secure_port(address, credentials)
                if credentials
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen on {address}: is the port in use? ({error})") from error
        self.local_address = address if address.startswith("unix:") else f"127.0.0.1:{self.port}"
        if credentials:
            self._folder = make_socket_folder()
            self.local_address = f"unix:{self._folder.name}/grpcio"
            self._server.add_insecure_port(self.local_address)
        self._behind = connections is not None
        self._connections = connections or Connections(
            address.removeprefix("unix:") if address.startswith("unix:") else self.port,
            limits.max_connections,
            UNFINISHED_MESSAGES * limits.max_request_bytes,
            partial(self._calls.find_connections, limits.max_request_bytes),
            lambda: self._unary.taken > self._calls.count(RECEIVING, RUNNING),
        )
        for contract, handlers in zip(CONTRACTS, (ours.handlers, theirs.handlers), strict=True):
            for method in contract.methods:
                if not method.client_streaming:
                    self._add_unary(method, handlers[method.name], self._unary, self._crowd)
        self._add_stream(
            open_inference.DESCRIPTOR.methods_by_name["ModelStreamInfer"],
            lambda request, call: theirs.infer_streamed(request, call, refuse),
        )
        self._add_health(limits.max_watches)
        if reflect:
            self._add_reflection()
        # Each method has a queue of its own in grpc's core then: health does not wait behind predictions.
        for path, served in self._router.methods.items():
            service, name = path[1:].split("/")
            self._server.add_registered_method_handlers(service, {name: served.handler})

    def _count_refusal(self, connection: str) -> None:
        self._connections.count_refusal(connection)

    def start(self) -> None:
        """Begin to answer, healthy."""
        self._health.set({"": False})
        self._calls.start(self._router.log_refusals)
        if not self._behind:
            self._connections.start()
        self._server.start()
        self._health.set(dict.fromkeys(("", *SERVICES), True))

    def show(self, entries: Iterable[Entry]) -> None:
        """Let clients ask and watch the health of a model by its name, and of a version by NAME/VERSION."""
        ready: dict[str, bool] = {}
        for entry in entries:
            ready[f"{entry.name}/{entry.version}"] = entry.ready
            ready[entry.name] = ready.get(entry.name, False) or entry.ready
        self._health.set(ready, forget=set(self._shown) - ready.keys())
        self._shown = ready.keys()

    def load(self) -> Load:
        """How much the server has to do."""
        return self._batcher.load()

    def announce_shutdown(self) -> None:
        """Tell whoever asks or watches that this server is not ready, for good, while requests are still answered."""
        self._theirs.announce_shutdown()
        self._health.leave()

    def drain(self, grace_s: float) -> int:
        """Refuse new requests, answer those that were accepted, cut what is left after ``grace_s``.

        Returns:
            How many requests were cut.
        """
        until = time.monotonic() + grace_s
        self._router.leaving = True
        for stream in self._streams.list_holders():
            stream.end(make_leaving())
        while (left := self._unary.taken + self._calls.count(RUNNING, SENDING)) and time.monotonic() < until:
            time.sleep(0.005)
        cut = self._calls.count(RUNNING, SENDING) if left else 0
        if not self._behind:
            self._connections.finish(min(FINISH_S, max(0.2, until - time.monotonic())))
        self._server.stop(0)
        self._calls.stop()
        for lane in {method.lane for method in self._router.methods.values()}:
            lane.threads.end()
        return cut

    def _add_unary(self, method: MethodDescriptor, handler: Handler, lane: Lane, crowd: Crowd) -> None:
        """Serve a method of one request and one reply."""
        parse, infers = GetMessageClass(method.input_type).FromString, method.name in INFERS
        batcher, router = self._batcher, self._router
        too_long, full = Template(queue_too_long()), Template(_calls_full())

        def respond(messages: Iterator[bytes], call: OpenCall) -> bytes:
            try:
                if infers and batcher.refuses(call.time_remaining_s()):
                    raise self._count(queue_too_long())
                crowd.begin_receiving(call)
                try:
                    message = next(messages, None)
                except grpc.RpcError:
                    self._connections.excuse(call.connection)
                    raise
                finally:
                    crowd.end_receiving(call)
                if message is None:
                    self._connections.excuse(call.connection)
                    raise MessageInvalid("the call has no message: send one")
                self._connections.count_message(call.connection, len(message))
                call.enter(RUNNING)
                try:
                    request, size = self._messages.open(message, parse)
                except RequestError as error:
                    if infers:
                        self._count(error)
                    raise
                try:
                    reply: bytes = handler(request, call).SerializeToString()
                finally:
                    self._messages.close(size)
            finally:
                call.enter(SENDING)
                lane.give_back()
            return reply

        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            try:
                return respond(messages, self._calls.open(context))
            except grpc.RpcError:
                raise  # cancelled while it waited for its message: grpcio ends it
            except Exception as error:
                abort(context, refuse(error))

        def make_run(messages: Iterator[bytes], context: grpc.ServicerContext, send: Send) -> Arrival:
            call = self._calls.open(context)

            def run() -> None:
                try:
                    send(respond(messages, call))
                    send(None)
                except grpc.RpcError:
                    pass  # cancelled
                except Exception as error:
                    end(context, send, refuse(error))

            return Arrival(call, run, lambda: end(context, send, refuse(_calls_full())))

        def wait(messages: Iterator[bytes], context: grpc.ServicerContext, send: Send) -> None:
            """Wait for a thread."""
            crowd.enter(make_run(messages, context, send))

        def choose(messages: Iterator[bytes], context: grpc.ServicerContext, send: Send) -> None:
            """Refuse what would be answered too late."""
            if batcher.refuses(context.time_remaining()):
                abort(context, router.refuse(too_long, context))
            if not lane.take():
                abort(context, router.refuse(full, context))
            lane.threads.submit(make_run(messages, context, send).run)

        for inline in (wait, choose):  # both on the polling thread: no lock
            inline.experimental_thread_pool = router.inline  # type: ignore[attr-defined]
            inline.experimental_non_blocking = True  # type: ignore[attr-defined]
        answer.experimental_thread_pool = lane.threads  # type: ignore[attr-defined]
        self._router.methods[_path(method)] = Method(
            grpc.stream_unary_rpc_method_handler(answer),
            lane,
            crowded=grpc.stream_stream_rpc_method_handler(wait),
            infers=grpc.stream_stream_rpc_method_handler(choose) if infers else None,
            always=method.containing_service.full_name == HEALTH,
        )

    def _count(self, error: RequestError) -> RequestError:
        """Count a request for a prediction that is refused before its model is known."""
        self._statistics.count_refusal(None, 0.0, error)
        return error

    def _add_stream(self, method: MethodDescriptor, handler: Handler, path: str = "") -> None:
        """Serve a stream of requests, each with one reply, in their order."""
        parse, connections = GetMessageClass(method.input_type).FromString, self._connections

        def answer(messages: Iterator[bytes], context: grpc.ServicerContext, send: Send) -> None:
            call = self._calls.open(context, IDLE)
            stream = _Stream(call, context, send)
            try:
                with self._streams.hold(stream):
                    for message in messages:
                        connections.count_message(call.connection, len(message))
                        if not stream.begin():
                            break
                        request, size = self._messages.open(message, parse)
                        try:
                            reply = handler(request, call).SerializeToString()
                        finally:
                            self._messages.close(size)
                        call.enter(SENDING)
                        send(reply)
                        if not stream.rest():
                            break
                    else:
                        stream.end()
            except grpc.RpcError:
                connections.excuse(call.connection)
                raise  # cancelled
            except Exception as error:
                stream.end(error, now=True)
            finally:
                self._stream_lane.give_back()

        answer.experimental_non_blocking = True  # type: ignore[attr-defined]
        answer.experimental_thread_pool = self._stream_lane.threads  # type: ignore[attr-defined]
        self._router.methods[path or _path(method)] = Method(
            grpc.stream_stream_rpc_method_handler(answer), self._stream_lane
        )

    def _add_health(self, max_watches: int) -> None:
        """Serve ``grpc.health.v1``: to everybody, in threads of its own."""
        health = self._health
        check, watch = (health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name[n] for n in ("Check", "Watch"))

        def read(request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
            return health.check(request.service)

        checks = Lane(CHECKS, "checks")
        self._add_unary(check, read, checks, Crowd(checks))
        lane = Lane(max_watches + SPARE_STREAMS, "watches")
        places: Places[_Watch] = Places(max_watches, lambda: _watches_full(max_watches))

        def follow(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                call = self._calls.open(context)
                follower = _Watch(call)
                with places.hold(follower):
                    message = next(messages, None)
                    if message is None:
                        raise MessageInvalid("the call has no message: send one")
                    self._connections.count_message(call.connection, len(message))
                    request, size = self._messages.open(message, health_pb2.HealthCheckRequest.FromString)
                    self._messages.close(size)
                    with health.watched(follower.wake):
                        for state in follower.follow(partial(health.watch, request.service)):
                            yield state.SerializeToString()
                    if follower.evicted:
                        raise follower.evicted
            except grpc.RpcError:
                raise  # cancelled while it waited for its message
            except RequestError as error:
                abort(context, refuse(error))
            finally:
                lane.give_back()

        follow.experimental_thread_pool = lane.threads  # type: ignore[attr-defined]
        self._router.methods[_path(watch)] = Method(grpc.stream_stream_rpc_method_handler(follow), lane, always=True)

    def _add_reflection(self) -> None:
        """Serve reflection: v1alpha is what grpcio ships, v1 what tools ask for; the messages are the same."""
        servicer = reflection.ReflectionServicer(SERVICES)
        method = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].methods_by_name["ServerReflectionInfo"]

        def tell(request: Any, call: Call) -> Any:
            return next(servicer.ServerReflectionInfo(iter([request]), None))

        for service in (reflection.SERVICE_NAME, REFLECTION_V1):
            self._add_stream(method, tell, f"/{service}/{method.name}")


class _Stream:
    """A stream of requests, which another thread may end: at once between two requests, else after the reply in hand.

    Args:
        call: Its state.
        context: Where its status is set.
        send: Sends a reply, or None: the status.

    Attributes:
        connection: See ``OpenCall``.
    """

    def __init__(self, call: OpenCall, context: grpc.ServicerContext, send: Send) -> None:
        self.connection = call.connection
        self._call = call
        self._context = context
        self._send = send
        self._lock = threading.Lock()
        self._busy = False
        self._ending = self._ended = False
        self._refusal: Refusal | None = None

    def begin(self) -> bool:
        """Begin a request; False if the stream has been ended."""
        with self._lock:
            self._busy = not self._ended
            self._call.enter(RUNNING if self._busy else IDLE)
            return self._busy

    def rest(self) -> bool:
        """Wait for the next request; False if the stream has been ended."""
        with self._lock:
            self._busy = False
            self._call.enter(IDLE)
            if self._ending:
                self._finish()
            return not self._ended

    def end(self, error: Exception | None = None, now: bool = False) -> None:
        """End the stream, with OK or with an error.

        Args:
            error: Why; None: the client has sent its last request.
            now: Do not wait for the reply in hand: the thread that makes it calls this.
        """
        with self._lock:
            if self._ending or self._ended:
                return
            self._ending = True
            if error is not None:
                self._refusal = refuse(error)
            if now or not self._busy:
                self._finish()

    def evict(self, error: RequestError) -> None:
        """Free its place for a stream of another connection."""
        self.end(error)

    def _finish(self) -> None:
        self._ended = True
        if self._refusal is None:
            self._send(None)
        else:
            end(self._context, self._send, self._refusal)


class _Watch:
    """A health watch: waits until there may be something new, or until its place is wanted.

    Attributes:
        connection: See ``OpenCall``.
        wake: Makes it look; takes no lock.
        evicted: Why it was ended, if its place was wanted.
    """

    def __init__(self, call: OpenCall) -> None:
        queue: SimpleQueue[None] = SimpleQueue()
        self.connection = call.connection
        self.evicted: RequestError | None = None
        self.wake = partial(queue.put, None)
        self._wait = queue.get
        self._call = call
        call.wake_on_cancel(self.wake)

    def evict(self, error: RequestError) -> None:
        """Free its place for a watch of another connection."""
        self.evicted = error
        self.wake()
        if self._call.state != IDLE:  # it waits for its client, who sends no message or takes no state
            self._call.cancel()

    def follow(self, read: Callable[[], Any]) -> Iterator[Any]:
        """The state now, and whenever it changes, until the call ends or is evicted."""
        last = None
        while not (self._call.over or self.evicted):
            if (state := read()) != last:
                last = state
                self._call.enter(SENDING)
                yield state
            self._call.enter(IDLE)
            self._wait()


def make_socket_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for a Unix socket, which nobody else may enter.

    Raises:
        AddressUnavailable: No temporary file can be written.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="evalmode-")
    except OSError as error:
        raise AddressUnavailable(
            f"no folder for a Unix socket: {error}: set TMPDIR to one that can be written"
        ) from error


def _calls_full() -> CallsFull:
    return CallsFull("too many calls wait for a thread: retry later, send each call's message at once")


def _streams_full(limit: int) -> StreamsFull:
    return StreamsFull(
        f"{limit} streams are open already, the limit: close some, or call without a stream", limit_streams=limit
    )


def _watches_full(limit: int) -> WatchesFull:
    return WatchesFull(f"{limit} health watches are open already, the limit: close some", limit_watches=limit)


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"
