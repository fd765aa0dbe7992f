"""The table from errors to gRPC statuses is complete and uses codes that gRPC defines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from evalmode.errors import ImageError, RequestError, UsageError
from serving.services.status import CODES, INTERNAL_REASON, RETRY_AFTER_S, reason_of


def concrete(error: type[Any]) -> Iterator[type[Any]]:
    """The leaves of an exception tree, which are the errors that are raised."""
    children = error.__subclasses__()
    if not children:
        yield error
    for child in children:
        yield from concrete(child)


def test_every_error_of_a_request_has_a_row_and_no_other_has() -> None:
    assert set(CODES) == set(concrete(RequestError))


def test_image_errors_depend_on_the_image_alone() -> None:
    names = {"ImageEmpty", "ImageTooLarge", "ImageTooManyPixels", "ImageFormatNotAllowed", "ImageUnreadable"}
    names |= {"ImageTooComplex", "ImageNeedsTooMuchMemory", "ImageSizeMismatch"}
    assert {error.__name__ for error in concrete(ImageError)} == names


@pytest.mark.parametrize("error", CODES, ids=lambda error: error.__name__)
def test_codes_are_defined_by_grpc_and_are_specific(error: type[RequestError]) -> None:
    assert grpc.StatusCode[CODES[error]] not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)


def test_codes_are_those_of_the_design() -> None:
    others = {
        "TokenInvalid": "UNAUTHENTICATED",
        "ControlForbidden": "PERMISSION_DENIED",
        "ServiceUnknown": "NOT_FOUND",
        "ModelNotFound": "NOT_FOUND",
        "ModelInvalid": "FAILED_PRECONDITION",
        "ControlDisabled": "UNIMPLEMENTED",
        "NotServed": "UNIMPLEMENTED",
        "MethodUnknown": "UNIMPLEMENTED",
        "MessageTooLarge": "RESOURCE_EXHAUSTED",
        "MessageLate": "DEADLINE_EXCEEDED",
        "MessagesFull": "RESOURCE_EXHAUSTED",
        "QueueFull": "RESOURCE_EXHAUSTED",
        "CallsFull": "RESOURCE_EXHAUSTED",
        "StreamsFull": "RESOURCE_EXHAUSTED",
        "WatchesFull": "RESOURCE_EXHAUSTED",
        "ServerLeaving": "UNAVAILABLE",
        "DeadlineExpired": "DEADLINE_EXCEEDED",
        "RequestCancelled": "CANCELLED",
    }
    assert {error.__name__: code for error, code in CODES.items() if code != "INVALID_ARGUMENT"} == others


def test_reasons_are_unique_and_upper_snake_case() -> None:
    reasons = [reason_of(error) for error in CODES]
    assert len({*reasons, INTERNAL_REASON}) == len(reasons) + 1
    for reason in reasons:
        assert reason.replace("_", "").isalpha(), reason
        assert reason.isupper(), reason
        assert len(reason) <= 63, reason  # google.rpc.ErrorInfo's limit
    assert "IMAGE_TOO_MANY_PIXELS" in reasons
    assert "QUEUE_FULL" in reasons


def test_only_overload_has_a_retry_delay() -> None:
    assert {error.__name__: after_s for error, after_s in RETRY_AFTER_S.items()} == {
        "QueueFull": 0.1,
        "CallsFull": 0.1,
        "MessagesFull": 0.1,
        "StreamsFull": 1.0,
        "WatchesFull": 1.0,
    }
    assert set(RETRY_AFTER_S) <= set(CODES)


def test_every_reason_is_tested() -> None:
    """By the name of its error or its own, in a test file other than this one, which iterates over the table."""
    named: set[str] = set()
    for path in Path(__file__).parents[2].rglob("test_*.py"):
        if path != Path(__file__):
            named.update(_names(ast.parse(path.read_text())))
    assert {error.__name__ for error in CODES if not {error.__name__, reason_of(error)} & named} == set()


def _names(tree: ast.Module) -> Iterator[str]:
    """Every name that is used, not merely imported, and every string."""
    for node in ast.walk(tree):
        match node:
            case ast.Name():
                yield node.id
            case ast.Attribute():
                yield node.attr
            case ast.Constant(value=str() as text):
                yield text


def test_facts_are_converted_to_strings() -> None:
    for error in (*CODES, *concrete(UsageError)):
        raised = error("what and what to do", size_bytes=3, limit_bytes=2)
        assert str(raised) == "what and what to do"
        assert raised.facts == {"size_bytes": "3", "limit_bytes": "2"}
        assert raised.exit_code == 2
