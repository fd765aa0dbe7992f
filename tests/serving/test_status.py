"""The one table from errors to statuses is complete, and says what gRPC knows."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from serving.errors import ImageError, RequestError, UsageError
from serving.services.status import CODES, INTERNAL_REASON, RETRY_AFTER_S, reason_of


def concrete(error: type[Exception]) -> Iterator[type[Exception]]:
    """The leaves of an exception tree: those that are raised."""
    children = error.__subclasses__()
    if not children:
        yield error
    for child in children:
        yield from concrete(child)


def test_every_error_of_a_request_has_a_row_and_no_other_has() -> None:
    assert set(CODES) == set(concrete(RequestError))


def test_image_errors_are_those_that_the_bytes_alone_can_cause() -> None:
    names = {"ImageEmpty", "ImageTooLarge", "ImageTooManyPixels", "ImageFormatNotAllowed", "ImageUnreadable"}
    assert {error.__name__ for error in concrete(ImageError)} == names


@pytest.mark.parametrize("error", CODES, ids=lambda error: error.__name__)
def test_codes_are_grpcs_and_none_hides_the_cause(error: type[RequestError]) -> None:
    assert grpc.StatusCode[CODES[error]] not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)


def test_codes_are_those_of_the_design() -> None:
    others = {"ModelNotFound", "QueueFull", "DeadlineExpired", "RequestCancelled"}
    named = {error.__name__: code for error, code in CODES.items()}
    assert {name: named[name] for name in others} == {
        "ModelNotFound": "NOT_FOUND",
        "QueueFull": "RESOURCE_EXHAUSTED",
        "DeadlineExpired": "DEADLINE_EXCEEDED",
        "RequestCancelled": "CANCELLED",
    }
    assert {code for name, code in named.items() if name not in others} == {"INVALID_ARGUMENT"}


def test_reasons_are_unique_and_upper_snake_case() -> None:
    reasons = [reason_of(error) for error in CODES]
    assert len({*reasons, INTERNAL_REASON}) == len(reasons) + 1
    for reason in reasons:
        assert reason.replace("_", "").isalpha(), reason
        assert reason.isupper(), reason
        assert len(reason) <= 63, reason  # google.rpc.ErrorInfo's limit
    assert "IMAGE_TOO_MANY_PIXELS" in reasons
    assert "QUEUE_FULL" in reasons


def test_only_overload_invites_a_retry() -> None:
    assert {error.__name__: after_s for error, after_s in RETRY_AFTER_S.items()} == {"QueueFull": 0.1}
    assert set(RETRY_AFTER_S) <= set(CODES)


def test_facts_are_text_by_name() -> None:
    for error in (*CODES, *concrete(UsageError)):
        raised = error("what and what to do", size_bytes=3, limit_bytes=2)
        assert str(raised) == "what and what to do"
        assert raised.facts == {"size_bytes": "3", "limit_bytes": "2"}
        assert raised.exit_code == 2
