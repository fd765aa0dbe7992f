"""Errors as gRPC statuses: a code, a message, and the details of google.rpc.Status in the trailing metadata."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from evalmode.errors import RequestError
from serving.services.status import DOMAIN, RETRY_AFTER_S, explain

log = logging.getLogger(__name__)

MESSAGE_CHARACTERS, FACT_CHARACTERS = 400, 100  # a status is sent in trailers, of which clients accept 8 KiB
_NO_ID = b"\0" * 12  # a placeholder for the id, which no message contains


@dataclass(frozen=True)
class Refusal:
    """The status of a call that ends with an error.

    Attributes:
        id: The id of the error in the log.
        code: The number of the gRPC status code.
        message: The error message.
        trailers: The trailing metadata with google.rpc.Status and its details.
    """

    id: str
    code: int
    message: str
    trailers: tuple[tuple[str, bytes], ...]


def refuse(error: Exception) -> Refusal:
    """Log an error, and return the status for the client.

    The description of an error that is not a ``RequestError`` appears in the log only.
    """
    error_id = uuid.uuid4().hex[:12]
    code, reason = explain(error)
    fields = {"id": error_id, "code": code, "reason": reason}
    if isinstance(error, RequestError):
        log.debug("refused %s, %s %s: %s", error_id, code, reason, error, extra=fields)
        message = _shorten(str(error), MESSAGE_CHARACTERS)
        packed = _pack_error(
            code, reason, message, error.field, tuple(error.facts.items()), RETRY_AFTER_S.get(type(error))
        )
    else:
        log.error("internal error %s", error_id, exc_info=error, extra=fields)
        message = f"internal error {error_id}: the server's log has the cause under this id"
        info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata={"id": error_id})
        packed = _pack(code, message, info)
    details = (("grpc-status-details-bin", packed.replace(_NO_ID, error_id.encode())),)
    return Refusal(error_id, code_pb2.Code.Value(code), message, details)


@lru_cache(maxsize=256)
def _pack_error(
    code: str, reason: str, message: str, field: str, facts: tuple[tuple[str, str], ...], retry_s: float | None
) -> bytes:
    """The serialized status of an error without its id. It is cached, because the same error often repeats."""
    shortened = {name: _shorten(value, FACT_CHARACTERS) for name, value in facts}
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=shortened)]
    if field:
        description = _shorten(message, FACT_CHARACTERS)
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _pack(code, message, *details)


def _pack(code: str, message: str, *details: Any) -> bytes:
    """A serialized google.rpc.Status with ``_NO_ID`` in place of the id."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    for detail in (*details, error_details_pb2.RequestInfo(request_id=_NO_ID.decode())):
        status.details.add().Pack(detail)
    content: bytes = status.SerializeToString()
    return content


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
