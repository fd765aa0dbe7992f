"""What a client is told of an error: a status code, a message, and google.rpc's details in the trailing metadata."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import Any

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from serving.errors import RequestError
from serving.services.status import DOMAIN, RETRY_AFTER_S, explain, reason_of

log = logging.getLogger(__name__)

MESSAGE_CHARACTERS, FACT_CHARACTERS = 400, 100  # a status travels in trailers, of which clients take 8 KiB
_BLANK = "?" * 12  # stands where an id will


@dataclass(frozen=True)
class Refusal:
    """How a call ends that is not answered.

    Attributes:
        id: under which the log has it.
        code: gRPC's number.
        message: for people.
        trailers: trailing metadata, for machines: google.rpc.Status with its details.
    """

    id: str
    code: int
    message: str
    trailers: tuple[tuple[str, bytes], ...]


def refuse(error: Exception) -> Refusal:
    """What a client is told, with an id that stands in the log, too; of what is no ``RequestError`` nothing else."""
    error_id = _draw_id()
    code, reason = explain(error)
    told = {"id": error_id, "code": code, "reason": reason}
    if isinstance(error, RequestError):
        log.debug("refused %s, %s %s: %s", error_id, code, reason, error, extra=told)
        return _pack(error_id, code, _shorten(str(error), MESSAGE_CHARACTERS), *_describe(error))
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata={"id": error_id})
    log.error("internal error %s", error_id, exc_info=error, extra=told)
    return _pack(error_id, code, f"internal error {error_id}: the server's log has the cause under this id", info)


class Template:
    """The refusal of an error that is known beforehand: all but its id is made once, so that the next costs nothing.

    Args:
        error: Why a call is refused.

    Attributes:
        code: The name of gRPC's status code.
        reason: The error's.
    """

    def __init__(self, error: RequestError) -> None:
        self.code, self.reason = explain(error)
        self._message = _shorten(str(error), MESSAGE_CHARACTERS)
        self._blank = _pack(_BLANK, self.code, self._message, *_describe(error))

    def fill(self) -> Refusal:
        """The refusal, with an id of its own."""
        error_id = _draw_id()
        trailers = tuple(
            (key, value.replace(_BLANK.encode(), error_id.encode())) for key, value in self._blank.trailers
        )
        return Refusal(error_id, self._blank.code, self._blank.message, trailers)

    def log(self, error_id: str) -> None:
        """Write what ``refuse`` would have: later, and in another thread."""
        facts = {"id": error_id, "code": self.code, "reason": self.reason}
        log.debug("refused %s, %s %s: %s", error_id, self.code, self.reason, self._message, extra=facts)


def _draw_id() -> str:
    return uuid.uuid4().hex[:12]


def _describe(error: RequestError) -> list[Any]:
    facts = {name: _shorten(value, FACT_CHARACTERS) for name, value in error.facts.items()}
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason_of(type(error)), domain=DOMAIN, metadata=facts)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_shorten(str(error), FACT_CHARACTERS)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if type(error) in RETRY_AFTER_S:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(RETRY_AFTER_S[type(error)] * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _pack(error_id: str, code: str, message: str, *details: Any) -> Refusal:
    number = code_pb2.Code.Value(code)
    packed = []
    for detail in (*details, error_details_pb2.RequestInfo(request_id=error_id)):
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=number, message=message, details=packed)
    return Refusal(error_id, number, message, (("grpc-status-details-bin", status.SerializeToString()),))


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
