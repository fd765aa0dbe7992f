"""Outcomes of grpcio calls: replies and errors, how they are passed on, and how a call ends with a status.

An exception keeps the frames of its traceback alive, and so the message of its call. Each function here makes sure that
no reference cycle is left, since the message would stay in memory until the next garbage collection.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import grpc
import grpc.aio

from evalmode.errors import RequestError
from serving.transports.calls import OpenCall
from serving.transports.refusals import refuse

Context: TypeAlias = grpc.aio.ServicerContext

STATUSES = {status.value[0]: status for status in grpc.StatusCode}


def serialize(message: Any) -> bytes:
    """Serialize a protobuf message."""
    return message.SerializeToString()  # type: ignore[no-any-return]


def resolve(future: asyncio.Future[Any], outcome: Any) -> None:
    """Set the result of a future, unless it is done or cancelled.

    Args:
        future: The future.
        outcome: The result. An exception is a result, too: ``unwrap`` raises it.
    """
    if isinstance(outcome, RequestError):
        outcome.__traceback__ = outcome.__context__ = outcome.__cause__ = None
    if not future.done():
        future.set_result(outcome)


def unwrap(outcome: Any) -> bytes:
    """Return a serialized reply, or raise the error in its place.

    Args:
        outcome: The reply or the error.

    Raises:
        Exception: The error.
    """
    try:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]
    finally:
        del outcome  # the traceback refers to this frame, and this frame must not refer to the error


def ignore_error(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a task that nothing awaits any more: asyncio would log it with a traceback."""
    if not task.cancelled():
        task.exception()


async def end_call(call: OpenCall, context: Context, error: BaseException) -> bool:
    """End a call with an error.

    Args:
        call: The call.
        context: The context of its handler.
        error: The error that the handler caught.

    Returns:
        False if the call has ended already, because its client cancelled it.
    """
    if isinstance(error, asyncio.CancelledError) and call.error is not None:
        error = call.error
    if isinstance(error, asyncio.CancelledError | grpc.aio.BaseError):
        return False
    assert isinstance(error, Exception)
    await refuse_call(context, error)
    return True


async def refuse_call(context: Context, error: Exception) -> None:
    """End a call with the status of an error.

    Args:
        context: The context of its handler.
        error: The error.
    """
    refusal = refuse(error)
    await abort_call(context, STATUSES[refusal.code], refusal.message, refusal.trailers)


async def abort_call(context: Context, code: grpc.StatusCode, message: str, trailers: Any = ()) -> None:
    """End a call with a status and without a reply, which would wait for a client that does not read.

    grpc keeps the error that ``context.abort`` raises, and raises it once the handler has returned.

    Args:
        context: The context of its handler.
        code: The status code.
        message: The error message.
        trailers: The trailing metadata.
    """
    try:
        await context.abort(code, message, trailers)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = aborted.__context__ = None
