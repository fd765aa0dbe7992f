"""The messages of grpcio calls: reading and sending them, and counting those that arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import grpc.aio

from evalmode.errors import CallsFull, MessageInvalid
from serving.transports.calls import IDLE, SENDING, OpenCall
from serving.transports.connections import Connections
from serving.transports.loop import Loop
from serving.transports.outcomes import Context, ignore_error
from serving.transports.pacing import Pacing
from serving.transports.places import Places

MAX_RECEIVING = 4096  # calls whose message has not arrived yet: each takes about 10 kB


class Receiver:
    """Reads and sends the messages of calls. Use it in the thread of the event loop only.

    Args:
        loop: The event loop.
        connections: Counts messages and refusals by connection.

    Attributes:
        places: The calls whose message has not arrived yet.
    """

    def __init__(self, loop: Loop, connections: Connections) -> None:
        self._loop = loop
        self._connections = connections
        self._pacing = Pacing()
        self.places = Places(MAX_RECEIVING, make_calls_full)

    async def receive(self, call: OpenCall, context: Context) -> bytes:
        """Read the message of a call that has exactly one.

        Args:
            call: The call.
            context: The context of its handler.

        Raises:
            CallsFull: Too many calls wait for their message.
            MessageInvalid: The call has no message.
        """
        self.places.enter(call)
        try:
            message = await self.read(call, context)
        finally:
            self.places.leave(call)
        if message is None:
            raise MessageInvalid("the call has no message: send one")
        return message

    async def read(self, call: OpenCall, context: Context) -> bytes | None:
        """Read the next message of a call.

        Args:
            call: The call.
            context: The context of its handler.

        Returns:
            The message; None if the client has sent its last one.
        """
        try:
            await self._pacing.wait((call.connection, call.path))
        except asyncio.CancelledError:
            self._connections.count_refusal(call.connection)
            raise
        message = await self._finish(context.read(), partial(self._note_read, call))
        return None if message is grpc.aio.EOF else message

    async def send(self, call: OpenCall, context: Context, message: bytes) -> None:
        """Send one message of a stream, then end the stream if that was requested meanwhile.

        Args:
            call: The call.
            context: The context of its handler.
            message: The message.

        Raises:
            RequestError: The error that the stream has to end with.
        """
        call.enter(SENDING)
        await self._finish(context.write(message), ignore_error)
        call.enter(IDLE)
        if call.error is not None:
            raise call.error

    def _note_read(self, call: OpenCall, reading: asyncio.Task[Any]) -> None:
        """Count what was read, also if the call is cancelled."""
        if reading.cancelled() or reading.exception() or reading.result() is grpc.aio.EOF:
            self._connections.excuse(call.connection)
            return
        size_bytes = len(reading.result())
        self._pacing.note((call.connection, call.path), size_bytes)
        self._connections.count_message(call.connection, size_bytes)

    async def _finish(self, operation: Coroutine[Any, Any, Any], done: Callable[[asyncio.Task[Any]], object]) -> Any:
        """Complete an operation of grpc even if its call is cancelled: otherwise grpc leaks the message."""
        task = self._loop.asyncio.create_task(operation)
        task.add_done_callback(done)
        return await asyncio.shield(task)


def make_calls_full() -> CallsFull:
    """The error of a call that gets no place to wait for its message or for a thread."""
    return CallsFull("too many calls wait for their message or a thread: retry later, send each call's message at once")
