"""What happens to a call when it arrives, on grpcio's polling thread: it gets a thread, or is refused there and then.

Nothing here takes a lock, reads a file, logs or waits (see ``serving.transports.grpcio``).
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import grpc

from serving.batching import Batcher
from serving.errors import CallsFull, RequestError, ServerLeaving
from serving.services.access import Access, make_control_forbidden, make_token_invalid
from serving.transports.refusals import Refusal, Template
from serving.transports.threads import Inline, Lane

STATUSES = {status.value[0]: status for status in grpc.StatusCode}
RESERVED_THREADS = 16  # of a lane: they go to connections in turns
MAX_UNLOGGED = 10_000  # refusals that wait for a thread that may log them

Behavior = Callable[..., Any]


class Method(NamedTuple):
    """How a method is served.

    Attributes:
        handler: For grpcio.
        lane: Whose threads it runs in.
        crowded: The handler while those are scarce; None: calls are refused while there are none.
        infers: The handler while deadlines are short for the queue, of a method that takes a place of the batcher.
        always: Whether it is served to everybody, and while the server is shutting down: health is.
    """

    handler: grpc.RpcMethodHandler
    lane: Lane
    crowded: grpc.RpcMethodHandler | None = None
    infers: grpc.RpcMethodHandler | None = None
    always: bool = False


class Router(grpc.ServerInterceptor):  # type: ignore[misc]
    """Finds a call's handler, or one that refuses it.

    Args:
        batcher: Requests are refused on arrival while it is full.
        access: Who may call what; None: everybody everything.
        refused: Counts what is refused here by code and reason; no other thread writes to it.
        count_refusal: Called with the connection of each call that is refused here.

    Attributes:
        methods: By path, such as ``/package.Service/Method``.
        leaving: Whether the server is shutting down.
        inline: What a handler runs in that neither locks nor waits.
    """

    def __init__(
        self,
        batcher: Batcher,
        access: Access | None,
        refused: Counter[tuple[str, str]],
        count_refusal: Callable[[str], None],
    ) -> None:
        self.methods: dict[str, Method] = {}
        self.leaving = False
        self._refused = refused
        self._batcher = batcher
        self._access = access
        self._count_refusal = count_refusal
        self._unlogged: deque[tuple[Template, str]] | None = None
        if logging.getLogger("serving.transports.refusals").isEnabledFor(logging.DEBUG):
            self._unlogged = deque(maxlen=MAX_UNLOGGED)
        self.inline = Inline()
        self._leaving = self._make_refusal(make_leaving())
        self._queue_full = self._make_refusal(batcher.queue_full())
        self._calls_full = self._make_refusal(
            CallsFull("every thread of the server has a call: retry later, send each call's message at once")
        )
        denials: tuple[RequestError, ...] = (make_token_invalid(), make_control_forbidden())
        self._denials = {type(denial): self._make_refusal(denial) for denial in denials}

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """See ``grpc.ServerInterceptor``; None: there is no such method."""
        method = self.methods.get(details.method)
        if method is not None and method.always:
            return self._give_thread(method)
        if self.leaving:
            return self._leaving
        if self._access:
            try:
                self._access.check(details.method, find_authorization(details.invocation_metadata))
            except RequestError as error:
                return self._denials[type(error)]
        if method is None:
            return None
        if method.infers is not None:
            if self._batcher.is_full():
                return self._queue_full
            if self._batcher.is_pressed():
                return method.infers
        return self._give_thread(method)

    def _give_thread(self, method: Method) -> grpc.RpcMethodHandler:
        if method.crowded is not None and method.lane.is_scarce(RESERVED_THREADS):
            return method.crowded
        return method.handler if method.lane.take() else self._calls_full

    def log_refusals(self) -> None:
        """Log what was refused since the last time; not on the polling thread."""
        while self._unlogged:
            template, error_id = self._unlogged.popleft()
            template.log(error_id)

    def _make_refusal(self, error: RequestError) -> grpc.RpcMethodHandler:
        template = Template(error)

        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            abort(context, self.refuse(template, context))

        answer.experimental_thread_pool = self.inline  # type: ignore[attr-defined]
        return grpc.stream_unary_rpc_method_handler(answer)  # whatever was called: this kind waits for no message

    def refuse(self, template: Template, context: grpc.ServicerContext) -> Refusal:
        """Count a refusal, and have it logged later."""
        refusal = template.fill()
        self._refused[template.code, template.reason] += 1
        self._count_refusal(context.peer())
        if self._unlogged is not None:
            self._unlogged.append((template, refusal.id))
        return refusal


def make_leaving() -> ServerLeaving:
    """What requests are refused with while the server is shutting down."""
    return ServerLeaving("the server is shutting down: call another one")


def end(context: grpc.ServicerContext, send: Callable[[bytes | None], None], refusal: Refusal) -> None:
    """End a call with a refusal, outside of its handler.

    Args:
        context: Where its status is set.
        send: Sends a message, or None: the status.
        refusal: The status.
    """
    context.set_trailing_metadata(refusal.trailers)
    context.set_code(STATUSES[refusal.code])
    context.set_details(refusal.message)
    send(None)


def find_authorization(metadata: Any) -> str:
    """The value of a call's ``authorization``, "" where there is none."""
    return next((value for key, value in metadata if key == "authorization"), "")


def abort(context: grpc.ServicerContext, refusal: Refusal) -> NoReturn:
    """End a call with a refusal."""
    context.set_trailing_metadata(refusal.trailers)
    context.abort(STATUSES[refusal.code], refusal.message)
    raise AssertionError("abort returned")
