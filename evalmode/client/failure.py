"""Failed calls as one exception with the server's reason."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from evalmode.errors import EvalmodeError


class CallFailed(EvalmodeError):
    """A call was refused, or the server could not be reached.

    Args:
        message: The status code and the server's message.
        code: The attribute of this name.
        reason: The attribute of this name.
        id: The attribute of this name.
        retry_s: The attribute of this name.
        facts: The values in the message by name.

    Attributes:
        code: The name of the gRPC status code, such as ``INVALID_ARGUMENT``.
        reason: The reason code, see docs/reference/errors.md; "" if the error is the transport's.
        id: The request's id in the server's log; "" if the request did not reach the server.
        retry: Whether the same call may succeed later, or at another server.
        retry_s: The seconds after which the server asks for that, 0.0 if it names none; None without ``retry``.
    """

    def __init__(
        self, message: str, *, code: str, reason: str, id: str, retry_s: float | None, facts: dict[str, str]
    ) -> None:
        super().__init__(message, **facts)
        self.code = code
        self.reason = reason
        self.id = id
        self.retry = retry_s is not None
        self.retry_s = retry_s


def read_failure(error: Any, address: str) -> CallFailed:
    """Read the ``google.rpc`` details in the trailing metadata of a failed call.

    Args:
        error: The ``grpc.RpcError``.
        address: The server that was called, HOST:PORT.

    Returns:
        The exception to raise.
    """
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    repeat = error_details_pb2.RetryInfo()
    retry_s = 0.0 if error.code() is grpc.StatusCode.UNAVAILABLE else None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)
                detail.Unpack(request)
                if detail.Unpack(repeat):
                    retry_s = repeat.retry_delay.ToMilliseconds() / 1000
    details = error.details()
    if error.code() is grpc.StatusCode.UNAVAILABLE and not info.reason:  # from grpc, which names no remedy
        details = (
            f"no answer from {address} ({details}): is a server running there, and does it use TLS as the client does?"
        )
    return CallFailed(
        f"{error.code().name}: {details}",
        code=error.code().name,
        reason=info.reason,
        id=request.request_id,
        retry_s=retry_s,
        facts=dict(info.metadata),
    )
