"""The table from errors to gRPC status codes. docs/reference/errors.md shows it, and a test checks it."""

from __future__ import annotations

import re

from evalmode import errors
from evalmode.errors import RequestError

DOMAIN = "evalmode"

# Error -> the name of its gRPC status code. Overload is not UNAVAILABLE, which clients retry at once on another server.
CODES: dict[type[RequestError], str] = {
    errors.TokenInvalid: "UNAUTHENTICATED",
    errors.ControlForbidden: "PERMISSION_DENIED",
    errors.ServiceUnknown: "NOT_FOUND",
    errors.ModelUnspecified: "INVALID_ARGUMENT",
    errors.ModelNotFound: "NOT_FOUND",
    errors.ModelInvalid: "FAILED_PRECONDITION",
    errors.ControlDisabled: "UNIMPLEMENTED",
    errors.NotServed: "UNIMPLEMENTED",
    errors.MethodUnknown: "UNIMPLEMENTED",
    errors.InputMissing: "INVALID_ARGUMENT",
    errors.ImagesNotTaken: "INVALID_ARGUMENT",
    errors.ImageEmpty: "INVALID_ARGUMENT",
    errors.ImageTooLarge: "INVALID_ARGUMENT",
    errors.ImageTooManyPixels: "INVALID_ARGUMENT",
    errors.ImageTooComplex: "INVALID_ARGUMENT",
    errors.ImageNeedsTooMuchMemory: "INVALID_ARGUMENT",
    errors.ImageFormatNotAllowed: "INVALID_ARGUMENT",
    errors.ImageSizeMismatch: "INVALID_ARGUMENT",
    errors.ImageUnreadable: "INVALID_ARGUMENT",
    errors.PixelsMismatch: "INVALID_ARGUMENT",
    errors.TensorUnknown: "INVALID_ARGUMENT",
    errors.TensorMissing: "INVALID_ARGUMENT",
    errors.TensorDuplicate: "INVALID_ARGUMENT",
    errors.DatatypeMismatch: "INVALID_ARGUMENT",
    errors.ShapeMismatch: "INVALID_ARGUMENT",
    errors.ContentsMixed: "INVALID_ARGUMENT",
    errors.ContentsMismatch: "INVALID_ARGUMENT",
    errors.NotFinite: "INVALID_ARGUMENT",
    errors.ParameterInvalid: "INVALID_ARGUMENT",
    errors.BatchTooLarge: "INVALID_ARGUMENT",
    errors.MessageInvalid: "INVALID_ARGUMENT",
    errors.MessageTooLarge: "RESOURCE_EXHAUSTED",
    errors.MessageLate: "DEADLINE_EXCEEDED",
    errors.MessagesFull: "RESOURCE_EXHAUSTED",
    errors.QueueFull: "RESOURCE_EXHAUSTED",
    errors.CallsFull: "RESOURCE_EXHAUSTED",
    errors.StreamsFull: "RESOURCE_EXHAUSTED",
    errors.WatchesFull: "RESOURCE_EXHAUSTED",
    errors.ServerLeaving: "UNAVAILABLE",
    errors.DeadlineExpired: "DEADLINE_EXCEEDED",
    errors.RequestCancelled: "CANCELLED",
}

# Errors with google.rpc.RetryInfo: the same request may succeed on this server after so many seconds.
RETRY_AFTER_S: dict[type[RequestError], float] = {
    errors.QueueFull: 0.1,
    errors.CallsFull: 0.1,
    errors.MessagesFull: 0.1,
    errors.StreamsFull: 1.0,
    errors.WatchesFull: 1.0,
}

INTERNAL_REASON = "INTERNAL"


def explain(error: Exception) -> tuple[str, str]:
    """The name of an error's gRPC status code, and its reason. An error that is not a ``RequestError`` is internal."""
    if isinstance(error, RequestError):
        return CODES[type(error)], reason_of(type(error))
    return INTERNAL_REASON, INTERNAL_REASON


def reason_of(error: type[RequestError]) -> str:
    """The reason in google.rpc.ErrorInfo: the error's name, ``ImageEmpty`` -> ``IMAGE_EMPTY``."""
    return _REASONS[error]


_REASONS = {error: re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).upper() for error in CODES}
