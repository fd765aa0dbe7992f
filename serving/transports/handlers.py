"""How grpcio's calls are answered: coroutines on the event loop, one for each kind of method.

Whatever blocks the loop stops every call, so nothing here reads a file, waits for a lock that is held for long, or
computes: images and large messages are read in the threads of the decode budget, networks run in slots.

Every method is registered as one that takes a stream of messages: its handler begins before the message has come, and
a call that sends none can be seen and ended.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from serving.batch import Call
from serving.errors import (
    CallsFull,
    MessageInvalid,
    MessageTooLarge,
    MethodUnknown,
    RequestError,
    ServerLeaving,
    StreamsFull,
    WatchesFull,
)
from serving.limits import Limits
from serving.services.access import Access
from serving.services.inference import QUICK_BYTES, Inference, Service, Work
from serving.services.open_inference import OpenInference
from serving.threads import Threads
from serving.transports.calls import IDLE, RUNNING, SENDING, Calls, OpenCall
from serving.transports.connections import Connections
from serving.transports.health import Health
from serving.transports.loop import Loop
from serving.transports.messages import Held, Messages
from serving.transports.pacing import Pacing
from serving.transports.places import Places
from serving.transports.refusals import refuse

STATUSES = {status.value[0]: status for status in grpc.StatusCode}
MAX_RECEIVING = 4096  # calls whose message has not come: some 10 kB each
MAX_CONTROLS = 64  # calls that neither infer nor check health, running or waiting for a thread
MAX_PATH_CHARACTERS = 200  # of a method, in messages
_NOTHING = b""  # what a handler returns of a call that has a status; grpc does not look at it
HOPELESS_S = 0.002  # before its deadline, a request that would have to wait is not worth a refusal
LATE_S = 0.02  # grpc ends a call that much before its deadline by our clock, at most

Context: TypeAlias = grpc.aio.ServicerContext
Handler = Callable[[Any, Call], Any]


def _take_error(task: asyncio.Task[Any]) -> None:
    """Look at the error of a task that nobody waits for any more: else asyncio logs it, with a traceback."""
    if not task.cancelled():
        task.exception()


class Handlers:
    """Makes the handlers of methods.

    Args:
        loop: Where they run.
        inference: What answers requests for predictions.
        limits: Of messages, streams and watches.
        calls: Where calls are noted.
        connections: Where messages and refusals are counted.
        access: Who may call what; None: everybody everything.
        controls: Threads for what neither infers nor checks health.

    Attributes:
        leaving: Whether the server is shutting down.
        streams: The streams that are open.
    """

    def __init__(
        self,
        loop: Loop,
        inference: Inference,
        limits: Limits,
        calls: Calls,
        connections: Connections,
        access: Access | None,
        controls: Threads,
    ) -> None:
        self.leaving = False
        self.streams = Places(limits.max_streams, partial(_streams_full, limits.max_streams))
        self._watches = Places(limits.max_watches, partial(_watches_full, limits.max_watches))
        self._receiving = Places(MAX_RECEIVING, _calls_full)
        self._messages = Messages(limits.max_request_bytes)
        self._quick = Messages(QUICK_BYTES)  # read in the event loop
        self._pacing = Pacing()
        self._loop = loop
        self._inference = inference
        self._calls = calls
        self._connections = connections
        self._access = access
        self._controls = controls
        self._controlling = 0

    def infer(self, method: MethodDescriptor, service: Service) -> grpc.RpcMethodHandler:
        """The handler of a method that runs a model on one request."""
        path, parse = path_of(method), GetMessageClass(method.input_type).FromString
        batcher = self._inference.batcher

        async def answer(messages: object, context: Context) -> bytes:
            if batcher.is_busy() and await self._refuse_excess(context, path):
                return _NOTHING
            call = self._calls.open(context, self._loop.asyncio, path)
            try:
                self._check(context, path)
                message = [await self._receive(call, context)]
                return _unwrap(await self._infer(call, service, parse, message, _serialize))
            except (asyncio.CancelledError, Exception) as error:
                if not await _end(call, context, error):
                    raise
                return _NOTHING
            finally:
                call.enter(SENDING)

        return grpc.stream_unary_rpc_method_handler(answer)

    def control(self, method: MethodDescriptor, handler: Handler) -> grpc.RpcMethodHandler:
        """The handler of any other method of one request and one reply: in a thread, since it may wait."""
        parse = GetMessageClass(method.input_type).FromString

        async def run(message: bytes, call: OpenCall) -> bytes:
            return _unwrap(await self._control(parse, handler, message, call))

        return self._unary(method, run)

    def check(self, method: MethodDescriptor, health: Health) -> grpc.RpcMethodHandler:
        """The handler of ``Health.Check``: for everybody, and while the server shuts down."""

        async def run(message: bytes, call: OpenCall) -> bytes:
            return _serialize(health.check(self._parse_check(message).service))

        return self._unary(method, run, always=True)

    def watch(self, method: MethodDescriptor, health: Health) -> grpc.RpcMethodHandler:
        """The handler of ``Health.Watch``: for everybody, and while the server shuts down."""
        path = path_of(method)

        async def follow(messages: object, context: Context) -> None:
            call = self._calls.open(context, self._loop.asyncio, path)
            try:
                self._watches.enter(call)
                name = self._parse_check(await self._receive(call, context)).service
                call.enter(IDLE)
                changed, last = asyncio.Event(), None
                with health.watched(partial(self._loop.post, changed.set)):
                    while True:
                        changed.clear()
                        if (state := health.watch(name)) != last:
                            last = state
                            await self._send(call, context, _serialize(state))
                        await changed.wait()
            except (asyncio.CancelledError, Exception) as error:
                if not await _end(call, context, error):
                    raise
            finally:
                self._watches.leave(call)

        return grpc.stream_stream_rpc_method_handler(follow)

    def stream_infer(self, method: MethodDescriptor, service: OpenInference) -> grpc.RpcMethodHandler:
        """The handler of a stream of requests, each with one reply, in their order."""
        parse = GetMessageClass(method.input_type).FromString

        async def reply(message: bytes, call: OpenCall) -> bytes:
            request: Any = None

            def keep(content: bytes) -> Any:
                nonlocal request
                request = parse(content)
                return request

            outcome = await self._infer(call, service, keep, [message])
            try:
                if request is None:  # no message of this kind
                    raise outcome
                return _serialize(service.make_stream_reply(request, outcome, refuse))
            finally:
                del outcome  # see _unwrap

        return self._stream(path_of(method), reply)

    def reflect(self, path: str, answer: Callable[[Any], Any], parse: Callable[[bytes], Any]) -> grpc.RpcMethodHandler:
        """The handler of reflection.

        Args:
            path: Of the method.
            answer: Makes the reply of a request.
            parse: Makes the request of its bytes.
        """

        async def reply(message: bytes, call: OpenCall) -> bytes:
            return _serialize(answer(self._parse_quick(parse, message)))

        return self._stream(path, reply)

    def unknown(self) -> grpc.GenericRpcHandler:
        """The handler of every other method: only who may call is told that there is none."""

        def find(path: str) -> grpc.RpcMethodHandler:
            async def answer(messages: object, context: Context) -> bytes:
                try:
                    self._check(context, path)
                    raise self._count(context, _method_unknown(path))
                except RequestError as error:
                    await _refuse(context, error)
                return _NOTHING

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
                message = await self._receive(call, context)
                call.enter(RUNNING)
                return await run(message, call)
            except (asyncio.CancelledError, Exception) as error:
                if not await _end(call, context, error):
                    raise
                return _NOTHING
            finally:
                call.enter(SENDING)

        return grpc.stream_unary_rpc_method_handler(answer)

    def _stream(self, path: str, reply: Callable[[bytes, OpenCall], Awaitable[bytes]]) -> grpc.RpcMethodHandler:
        async def answer(messages: object, context: Context) -> None:
            call = self._calls.open(context, self._loop.asyncio, path, IDLE)
            try:
                self._check(context, path)
                self.streams.enter(call)
                while (message := await self._read(call, context)) is not None:
                    call.enter(RUNNING)
                    await self._send(call, context, await reply(message, call))
            except (asyncio.CancelledError, Exception) as error:
                if not await _end(call, context, error):
                    raise
            finally:
                self.streams.leave(call)

        return grpc.stream_stream_rpc_method_handler(answer)

    async def _control(
        self, parse: Callable[[bytes], Any], handler: Handler, message: bytes, call: OpenCall
    ) -> bytes | Exception:
        """The serialized reply of a handler that runs in a thread, or its error."""
        if self._controlling >= MAX_CONTROLS:
            return _calls_full()
        held = self._messages.hold(message)
        future: asyncio.Future[Any] = self._loop.asyncio.create_future()

        def work() -> None:
            try:
                outcome: Any = _serialize(handler(self._messages.parse(parse, message, held), call))
            except Exception as error:
                outcome = error
            self._loop.post(partial(end, outcome))

        def end(outcome: Any) -> None:
            self._controlling -= 1
            self._messages.free(held)
            _resolve(future, outcome)

        self._controlling += 1
        self._controls.call(work)
        return await future  # type: ignore[no-any-return]

    async def _refuse_excess(self, context: Context, path: str) -> bool:
        """Refuse a request that would get no place, or its answer too late, at the least cost: there may be many.

        Returns:
            Whether the call has its status.
        """
        remaining_s = context.time_remaining()
        try:
            self._check(context, path)
            if remaining_s is not None and remaining_s < HOPELESS_S:  # a refusal would come too late
                self._connections.count_refusal(context.peer())
                await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "")
                return True
            try:
                self._inference.batcher.check(math.inf if remaining_s is None else remaining_s)
            except RequestError as error:
                raise self._count(context, error) from None
        except RequestError as error:
            await _refuse(context, error)
            return True
        return False

    def _check(self, context: Context, path: str) -> None:
        """Check that a call may be answered."""
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

    async def _receive(self, call: OpenCall, context: Context) -> bytes:
        """The message of a call that has one."""
        self._receiving.enter(call)
        try:
            message = await self._read(call, context)
        finally:
            self._receiving.leave(call)
        if message is None:
            raise MessageInvalid("the call has no message: send one")
        return message

    async def _read(self, call: OpenCall, context: Context) -> bytes | None:
        """The next message; None: there is none any more."""
        try:
            await self._pacing.wait((call.connection, call.path))
        except asyncio.CancelledError:
            self._connections.count_refusal(call.connection)
            raise
        message = await self._finish(context.read(), partial(self._note_read, call))
        return None if message is grpc.aio.EOF else message

    def _note_read(self, call: OpenCall, reading: asyncio.Task[Any]) -> None:
        """Note what a read gave, be it that its call is cancelled."""
        if reading.cancelled() or reading.exception() or reading.result() is grpc.aio.EOF:
            self._connections.excuse(call.connection)
            return
        size_bytes = len(reading.result())
        self._pacing.note((call.connection, call.path), size_bytes)
        self._connections.count_message(call.connection, size_bytes)

    async def _send(self, call: OpenCall, context: Context, message: bytes) -> None:
        """Send one message of a stream, then end it if that was asked for."""
        call.enter(SENDING)
        await self._finish(context.write(message))
        call.enter(IDLE)
        if call.error is not None:
            raise call.error

    async def _finish(
        self, operation: Coroutine[Any, Any, Any], note: Callable[[asyncio.Task[Any]], object] = _take_error
    ) -> Any:
        """Let an operation of grpc's end although its call is cancelled: else grpc leaks the message."""
        task = self._loop.asyncio.create_task(operation)
        task.add_done_callback(note)
        return await asyncio.shield(task)

    async def _infer(
        self,
        call: OpenCall,
        service: Service,
        parse: Callable[[bytes], Any],
        message: list[bytes],
        finish: Callable[[Any], Any] = lambda reply: reply,
    ) -> Any:
        """The reply to a request for a prediction, or its error.

        Args:
            call: Its call.
            service: Its protocol.
            parse: Makes the request of its bytes.
            message: Its bytes, in a list that is empty once they are parsed: they need not stay until the answer.
            finish: What is made of the reply, in the thread of its slot.
        """
        call.enter(RUNNING)
        future: asyncio.Future[Any] = self._loop.asyncio.create_future()

        def done(outcome: Any) -> None:
            if not isinstance(outcome, Exception):
                try:
                    outcome = finish(outcome)
                except Exception as error:
                    outcome = error
            self._loop.post(partial(_resolve, future, outcome))

        try:
            held = self._messages.hold(message[0])
        except RequestError as error:
            self._inference.statistics.count_refusal(None, 0.0, error)
            return error
        try:
            work = Work(
                self._inference,
                service,
                lambda: self._messages.parse(parse, message.pop(), held),
                self._messages.count_bytes(message[0]),
                call,
                done,
                self._loop.later,
            )
            try:
                return await future
            except asyncio.CancelledError:
                call.over = call.time_remaining_s() > LATE_S  # else its deadline has passed
                work.withdraw()
                raise
        finally:
            self._messages.free(held)

    def _parse_check(self, message: bytes) -> health_pb2.HealthCheckRequest:
        return self._parse_quick(health_pb2.HealthCheckRequest.FromString, message)

    def _parse_quick(self, parse: Callable[[bytes], Any], message: bytes) -> Any:
        """The request of a message, in the event loop: of a small one, since every call waits meanwhile."""
        if len(message) > QUICK_BYTES:
            raise MessageTooLarge(
                f"the message is larger than max ({QUICK_BYTES} bytes) of this method: send a smaller one",
                limit_bytes=QUICK_BYTES,
            )
        return self._quick.parse(parse, message, Held(None))


class _Unknown(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds a handler for whatever is called."""

    def __init__(self, find: Callable[[str], grpc.RpcMethodHandler]) -> None:
        self._find = find

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """See ``grpc.GenericRpcHandler``."""
        return self._find(details.method)


def make_leaving() -> ServerLeaving:
    """The error of requests that come while the server is shutting down."""
    return ServerLeaving("the server is shutting down: call another one")


def _method_unknown(path: str) -> MethodUnknown:
    """The error of calls to a method that there is not; a client may send a path of any length."""
    shown = repr(path if len(path) <= MAX_PATH_CHARACTERS else path[: MAX_PATH_CHARACTERS - 1] + "…")
    return MethodUnknown(f"there is no method {shown} here: check the service, its version and the method")


def find_authorization(metadata: Any) -> str:
    """The value of a call's ``authorization``, "" where there is none."""
    return next((value for key, value in metadata if key == "authorization"), "")


def path_of(method: MethodDescriptor) -> str:
    """A method's path, such as ``/package.Service/Method``."""
    return f"/{method.containing_service.full_name}/{method.name}"


async def _end(call: OpenCall, context: Context, error: BaseException) -> bool:
    """End a call with an error; False: it has ended, cancelled by its client."""
    if isinstance(error, asyncio.CancelledError) and call.error is not None:
        error = call.error
    if isinstance(error, asyncio.CancelledError | grpc.aio.BaseError):
        return False
    assert isinstance(error, Exception)
    await _refuse(context, error)
    return True


async def _refuse(context: Context, error: Exception) -> None:
    refusal = refuse(error)
    await _abort(context, STATUSES[refusal.code], refusal.message, refusal.trailers)


async def _abort(context: Context, code: grpc.StatusCode, message: str, trailers: Any = ()) -> None:
    """End a call with a status and no message, which would wait where the client takes none.

    grpc keeps the error that ``context.abort`` raises, and raises it once the handler returns. With its traceback it
    would keep every frame, and so the call's message, until the garbage collector comes.
    """
    try:
        await context.abort(code, message, trailers)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = aborted.__context__ = None


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]


def _unwrap(outcome: Any) -> bytes:
    try:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]
    finally:
        del outcome  # else the error would hold itself, by its traceback


def _resolve(future: asyncio.Future[Any], outcome: Any) -> None:
    if isinstance(outcome, RequestError):
        # Its traceback holds frames, one of which holds the error: the message would live until the collector comes.
        outcome.__traceback__ = outcome.__context__ = outcome.__cause__ = None
    if not future.done():
        future.set_result(outcome)


def _calls_full() -> CallsFull:
    return CallsFull("too many calls wait for their message or a thread: retry later, send each call's message at once")


def _streams_full(limit: int) -> StreamsFull:
    return StreamsFull(
        f"{limit} streams are open already, the limit: close some, or call without a stream", limit_streams=limit
    )


def _watches_full(limit: int) -> WatchesFull:
    return WatchesFull(f"{limit} health watches are open already, the limit: close some", limit_watches=limit)
