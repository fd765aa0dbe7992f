"""The call of a request: when it must be answered, and whether its client still waits for the answer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from evalmode.errors import DeadlineExpired, RequestCancelled


class Call(Protocol):
    """The call of a request. Times are those of ``time.monotonic``."""

    @property
    def arrived(self) -> float:
        """The time of its arrival."""

    @property
    def deadline(self) -> float:
        """The time of its deadline; ``math.inf`` if it has none."""

    def cancelled(self) -> bool:
        """Return whether the client has cancelled the call or disconnected."""


@dataclass(frozen=True)
class Sooner:
    """A call with an earlier deadline than its own.

    Attributes:
        call: The call.
        until: The earlier deadline.
    """

    call: Call
    until: float

    @property
    def arrived(self) -> float:
        """See ``Call``."""
        return self.call.arrived

    @property
    def deadline(self) -> float:
        """See ``Call``."""
        return min(self.call.deadline, self.until)

    def cancelled(self) -> bool:
        """See ``Call``."""
        return self.call.cancelled()


def find_reason_to_end(call: Call, now: float, needed_s: float = 0.0) -> Exception | None:
    """Find out why a request should not run.

    Args:
        call: The call of the request.
        now: The current time.
        needed_s: The time that the answer still needs, in seconds.

    Returns:
        The error to end the request with; None if its answer can still be used.
    """
    if call.cancelled():
        return RequestCancelled("the call was cancelled: the network did not run")
    remaining_s = call.deadline - now
    if remaining_s <= 0:
        return DeadlineExpired("the deadline passed: the network did not run")
    if remaining_s <= needed_s:
        remaining_ms, needed_ms = remaining_s * 1e3, needed_s * 1e3
        return DeadlineExpired(
            f"the deadline passes in {remaining_ms:.3g} ms, and the answer needs {needed_ms:.3g} ms: the network did "
            "not run"
        )
    return None


def check_alive(call: Call) -> None:
    """Check that a call is neither cancelled nor past its deadline.

    Raises:
        RequestCancelled: The call was cancelled.
        DeadlineExpired: Its deadline has passed.
    """
    if (error := find_reason_to_end(call, time.monotonic())) is not None:
        raise error
