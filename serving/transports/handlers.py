"""The handlers of grpcio calls: coroutines on the event loop, one for each kind of method.

Blocking the event loop would stop every call, so nothing here reads a file, waits for a lock that is held for long, or
computes. Images and large messages are read, and networks run, in slots.

Every method is registered as client-streaming: its handler then starts before the message has arrived, so that a call
that sends no message can be seen and ended.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from evalmode.errors import MessageTooLarge, MethodUnknown, RequestError, ServerLeaving, StreamsFull, WatchesFull
from serving.services.backend import Backend
from serving.services.inference import QUICK_BYTES, Service, Unparsed, Work
from serving.services.open_inference import OpenInference
from serving.threads import Threads
from serving.transports.calls import IDLE, RUNNING, SENDING, Calls, OpenCall
from serving.transports.connections import Connections
from serving.transports.controls import Controls, Handler
from serving.transports.health import Health
from serving.transports.loop import Loop
from serving.transports.messages import Held, Messages
from serving.transports.outcomes import Context, abort_call, end_call, refuse_call, resolve, serialize, unwrap
from serving.transports.places import Places
from serving.transports.receiving import Receiver
from serving.transports.refusals import refuse

NO_REPLY = b""  # a handler returns it for a call that has ended with a status; grpc ignores it
MAX_PATH_CHARACTERS = 200  # of an unknown method in the error message
HOPELESS_S = 0.002  # if the deadline of a request is closer than this, a refusal would arrive too late
LATE_S = 0.02  # grpc ends a call at most this long before its deadline by this process's clock


class Handlers:
    """Creates the handlers of methods.

    Args:
        backend: What is served.
        loop: The event loop in which the handlers run.
        calls: The open calls of the server.
        connections: Counts messages and refusals by connection.
        controls: The threads for methods that neither infer nor check health.

    Attributes:
        leaving: Whether the server is shutting down.
        streams: The open streams.
    """

    def __init__(self, backend: Backend, loop: Loop, calls: Calls, connections: Connections, controls: Threads) -> None:
        limits = backend.limits
        self.leaving = False
        self.streams = Places(limits.max_streams, partial(_streams_full, limits.max_streams), backend.count("streams"))
        self._watches = Places(limits.max_watches, partial(_watches_full, limits.max_watches), backend.count("watches"))
        self._messages = Messages(limits.max_request_bytes)
        self._quick = Messages(QUICK_BYTES)  # parsed in the event loop
        self._receiver = Receiver(loop, connections)
        self._loop = loop
        self._inference = backend.inference
        self._calls = calls
        self._connections = connections
        self._access = backend.access
        self._controls = Controls(loop, self._messages, controls)

    def infer(self, method: MethodDescriptor, service: Service) -> grpc.RpcMethodHandler:
        """Create the handler of a method that runs a model on one request.

        Args:
            method: The method.
            service: The service of its protocol.
        """
        path, parse = path_of(method), GetMessageClass(method.input_type).FromString
        executor = self._inference.executor

        async def answer(messages: object, context: Context) -> bytes:
            if executor.is_busy() and await self._refuse_excess(context, path):
                return NO_REPLY
            call = self._calls.open(context, self._loop.asyncio, path)
            try:
                self._check(context, path)
                message = [await self._receiver.receive(call, context)]
                return unwrap(await self._infer(call, service, parse, message, serialize))
            except (asyncio.CancelledError, Exception) as error:
                if not await end_call(call, context, error):
                    raise
                return NO_REPLY
            finally:
                call.enter(SENDING)

        return grpc.stream_unary_rpc_method_handler(answer)

    def control(self, method: MethodDescriptor, handler: Handler) -> grpc.RpcMethodHandler:
        """Create the handler of any other unary method. It runs in a thread, because it may block.

        Args:
            method: The method.
            handler: Returns the reply to a request and its call.
        """
        parse = GetMessageClass(method.input_type).FromString

        async def run(message: bytes, call: OpenCall) -> bytes:
            return unwrap(await self._controls.run(parse, handler, message, call))

        return self._unary(method, run)

    def check(self, method: MethodDescriptor, health: Health) -> grpc.RpcMethodHandler:
        """Create the handler of ``Health.Check``. It needs no token, and answers while the server shuts down.

        Args:
            method: The method.
            health: The health of services and models.
        """

        async def run(message: bytes, call: OpenCall) -> bytes:
            return serialize(health.check(self._parse_check(message).service))

        return self._unary(method, run, always=True)

    def watch(self, method: MethodDescriptor, health: Health) -> grpc.RpcMethodHandler:
        """Create the handler of ``Health.Watch``. It needs no token, and answers while the server shuts down.

        Args:
            method: The method.
            health: The health of services and models.
        """
        path = path_of(method)

        async def follow(messages: object, context: Context) -> None:
            call = self._calls.open(context, self._loop.asyncio, path)
            try:
                self._watches.enter(call)
                name = self._parse_check(await self._receiver.receive(call, context)).service
                call.enter(IDLE)
                changed, last = asyncio.Event(), None
                with health.watched(partial(self._loop.post, changed.set)):
                    while True:
                        changed.clear()
                        if (state := health.watch(name)) != last:
                            last = state
                            await self._receiver.send(call, context, serialize(state))
                        await changed.wait()
            except (asyncio.CancelledError, Exception) as error:
                if not await end_call(call, context, error):
                    raise
            finally:
                self._watches.leave(call)

        return grpc.stream_stream_rpc_method_handler(follow)

    def stream_infer(self, method: MethodDescriptor, service: OpenInference) -> grpc.RpcMethodHandler:
        """Create the handler of a stream of requests. Each has one reply, in the order of the requests.

        Args:
            method: The method.
            service: The service of its protocol.
        """
        parse = GetMessageClass(method.input_type).FromString

        async def reply(message: list[bytes], call: OpenCall) -> bytes:
            named: Any = None  # the request without its inputs, which take memory

            def read(content: bytes) -> Any:
                nonlocal named
                request: Any = parse(content)
                named = type(request)(model_name=request.model_name, id=request.id)
                return request

            outcome = await self._infer(call, service, read, message)
            try:
                if named is None:  # the message could not be parsed
                    raise outcome
                return serialize(service.make_stream_reply(named, outcome, refuse))
            finally:
                del outcome  # see ``unwrap``

        return self._stream(path_of(method), reply)

    def reflect(self, path: str, answer: Callable[[Any], Any], parse: Callable[[bytes], Any]) -> grpc.RpcMethodHandler:
        """Create the handler of server reflection.

        Args:
            path: The full name of the method.
            answer: Returns the reply to a request.
            parse: Parses the message of a request.
        """

        async def reply(message: list[bytes], call: OpenCall) -> bytes:
            return serialize(answer(self._parse_quick(parse, message.pop())))

        return self._stream(path, reply)

    def unknown(self) -> grpc.GenericRpcHandler:
        """Create the handler of unknown methods, which ends calls with UNIMPLEMENTED if they are authorized."""

        def find(path: str) -> grpc.RpcMethodHandler:
            async def answer(messages: object, context: Context) -> bytes:
                try:
                    self._check(context, path)
                    raise self._count(context, _method_unknown(path))
                except RequestError as error:
                    await refuse_call(context, error)
                return NO_REPLY

            return grpc.stream_unary_rpc_method_handler(answer)

        return _Unknown(find)

    def _unary(
        self, method: MethodDescriptor, run: Callable[[bytes, OpenCall], Awaitable[bytes]], always: bool = False
    ) -> grpc.RpcMethodHandler:
        path = path_of(method)

        async def answer(messages: object, context: Context) -> bytes:
            call = self._calls.open(context, self._loop.asyncio, path)
            try:
                if not always:
                    self._check(context, path)
                message = await self._receiver.receive(call, context)
                call.enter(RUNNING)
                return await run(message, call)
            except (asyncio.CancelledError, Exception) as error:
                if not await end_call(call, context, error):
                    raise
                return NO_REPLY
            finally:
                call.enter(SENDING)

        return grpc.stream_unary_rpc_method_handler(answer)

    def _stream(self, path: str, reply: Callable[[list[bytes], OpenCall], Awaitable[bytes]]) -> grpc.RpcMethodHandler:
        """Create the handler of a stream; ``reply`` removes the message from its list, so that its memory is freed."""

        async def answer(messages: object, context: Context) -> None:
            call = self._calls.open(context, self._loop.asyncio, path, IDLE)
            try:
                self._check(context, path)
                self.streams.enter(call)
                while message := await self._read_next(call, context):
                    call.begin_request()
                    await self._receiver.send(call, context, await reply(message, call))
            except (asyncio.CancelledError, Exception) as error:
                if not await end_call(call, context, error):
                    raise
            finally:
                self.streams.leave(call)

        return grpc.stream_stream_rpc_method_handler(answer)

    async def _read_next(self, call: OpenCall, context: Context) -> list[bytes]:
        """The next message of a stream, in a list; an empty list after the last one."""
        message = await self._receiver.read(call, context)
        return [] if message is None else [message]

    async def _refuse_excess(self, context: Context, path: str) -> bool:
        """Refuse a request that would not be admitted, or be answered too late, before reading its message.

        Returns:
            Whether the call has ended.
        """
        remaining_s = context.time_remaining()
        try:
            self._check(context, path)
            if remaining_s is not None and remaining_s < HOPELESS_S:
                self._connections.count_refusal(context.peer())
                await abort_call(context, grpc.StatusCode.DEADLINE_EXCEEDED, "")
                return True
            try:
                self._inference.executor.check(math.inf if remaining_s is None else time.monotonic() + remaining_s)
            except RequestError as error:
                raise self._count(context, error) from None
        except RequestError as error:
            await refuse_call(context, error)
            return True
        return False

    def _check(self, context: Context, path: str) -> None:
        """Check that the server is not shutting down, and that the call is authorized."""
        if self.leaving:
            raise self._count(context, make_leaving())
        if self._access:
            try:
                self._access.check(path, find_authorization(context.invocation_metadata()))
            except RequestError as error:
                raise self._count(context, error) from None

    def _count(self, context: Context, error: RequestError) -> RequestError:
        """Count a call that is refused before its message is read."""
        self._inference.statistics.count_early_refusal(error)
        self._connections.count_refusal(context.peer())
        return error

    async def _infer(
        self,
        call: OpenCall,
        service: Service,
        parse: Callable[[bytes], Any],
        message: list[bytes],
        finish: Callable[[Any], Any] = lambda reply: reply,
    ) -> Any:
        """Run an inference request.

        Args:
            call: The call.
            service: The service of its protocol.
            parse: Parses the message.
            message: A list with the message, which is removed once it is parsed, so that its memory is freed.
            finish: Converts the reply, in the thread of the slot.

        Returns:
            The converted reply, or the error.
        """
        call.enter(RUNNING)
        future: asyncio.Future[Any] = self._loop.asyncio.create_future()

        try:
            held = self._messages.hold(message[0])
        except RequestError as error:
            self._inference.statistics.count_refusal(None, 0.0, error)
            return error
        try:
            work = Work(
                self._inference,
                service,
                Unparsed(
                    lambda: self._messages.parse(parse, message.pop(), held),
                    self._messages.count_bytes(message[0]),
                    finish,
                ),
                call,
                lambda outcome: self._loop.post(partial(resolve, future, outcome)),
                self._loop.later,
            )
            try:
                return await future
            except asyncio.CancelledError:
                call.over = call.deadline - time.monotonic() > LATE_S  # otherwise the deadline has passed
                work.withdraw()
                raise
        finally:
            self._messages.free(held)

    def _parse_check(self, message: bytes) -> health_pb2.HealthCheckRequest:
        return self._parse_quick(health_pb2.HealthCheckRequest.FromString, message)

    def _parse_quick(self, parse: Callable[[bytes], Any], message: bytes) -> Any:
        """Parse a message in the event loop. It must be small, because all other calls wait meanwhile."""
        if len(message) > QUICK_BYTES:
            raise MessageTooLarge(
                f"the message is larger than max ({QUICK_BYTES} bytes) for this method: send a smaller one",
                limit_bytes=QUICK_BYTES,
            )
        return self._quick.parse(parse, message, Held(None))


class _Unknown(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds a handler for any method."""

    def __init__(self, find: Callable[[str], grpc.RpcMethodHandler]) -> None:
        self._find = find

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """See ``grpc.GenericRpcHandler``."""
        return self._find(details.method)


def make_leaving() -> ServerLeaving:
    """The error of requests that arrive while the server is shutting down."""
    return ServerLeaving("the server is shutting down: call another server")


def _method_unknown(path: str) -> MethodUnknown:
    """The error of calls of unknown methods. Clients may send a path of any length, so it is shortened."""
    shown = repr(path if len(path) <= MAX_PATH_CHARACTERS else path[: MAX_PATH_CHARACTERS - 1] + "…")
    return MethodUnknown(f"there is no method {shown}: check the service, its version and the method")


def find_authorization(metadata: Any) -> str:
    """The value of the ``authorization`` metadata of a call, "" if there is none."""
    return next((value for key, value in metadata if key == "authorization"), "")


def path_of(method: MethodDescriptor) -> str:
    """The full name of a method, such as ``/package.Service/Method``."""
    return f"/{method.containing_service.full_name}/{method.name}"


def _streams_full(limit: int) -> StreamsFull:
    return StreamsFull(
        f"{limit} streams are open already, which is the limit: close some, or use ModelInfer", limit_streams=limit
    )


def _watches_full(limit: int) -> WatchesFull:
    return WatchesFull(f"{limit} health watches are open already, which is the limit: close some", limit_watches=limit)
