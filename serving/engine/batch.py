"""Requests, and which of them may run as one batch: those of one model that will all meet their deadlines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from evalmode.artifact.tensors import Tensors
from evalmode.errors import DeadlineExpired, RequestCancelled

if TYPE_CHECKING:
    from evalmode.runtime.model import Model

CountRun: TypeAlias = "Callable[[Model, int, int], None]"  # the model, the number of inputs, microseconds
BATCH_S = 0.02  # target duration of a batch: every request in it waits until the batch ends


class Call(Protocol):
    """The call of a request."""

    def time_remaining_s(self) -> float:
        """Return the seconds until the client's deadline, at most ``threading.TIMEOUT_MAX``."""

    def waited_s(self) -> float:
        """Return the seconds from the arrival of the call until it was read, if it had to wait."""

    def cancelled(self) -> bool:
        """Return whether the client has cancelled the call or disconnected."""


@dataclass(eq=False)
class Request:
    """A request for one inference run.

    Attributes:
        model: The model to run.
        inputs: Arrays by input name, at most ``max_batch`` rows along the first axis of each.
        call: The call of the request.
        arrived: The time of its arrival, by ``time.perf_counter``.
        optional: The optional outputs that it asks for, by name.
        rows: The number of rows.
    """

    model: Model
    inputs: Tensors
    call: Call
    arrived: float
    optional: tuple[str, ...] = ()
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = count_rows(self.inputs)
        self._sides = {name: array.shape[1:] for name, array in self.inputs.items()}

    def fits(self, other: Request) -> bool:
        """Return whether two requests can run in one batch: the same model, shapes apart from the rows, and outputs."""
        return self.model is other.model and self._sides == other._sides and self.optional == other.optional


AnyRequest = TypeVar("AnyRequest", bound=Request)


class Batch(Generic[AnyRequest]):
    """Requests that may run together: of one model, and all in time for their deadlines.

    Args:
        limit: The largest number of rows.

    Attributes:
        requests: The requests in the batch.
    """

    def __init__(self, limit: int) -> None:
        self.requests: list[AnyRequest] = []
        self._rows = 0
        self._limit = limit
        self._within_s = BATCH_S
        self._row_s = 0.0

    def has_room_for(self, request: AnyRequest) -> bool:
        """Return whether a request may be added to a batch that is not empty."""
        rows = self._rows + request.rows
        return (
            request.fits(self.requests[0])
            and rows <= min(self._limit, request.model.max_batch)
            and rows * self._row_s <= min(self._within_s, request.call.time_remaining_s())
        )

    def add(self, request: AnyRequest) -> None:
        """Add a request."""
        self._row_s = self._row_s or request.model.expect_s(1)
        self.requests.append(request)
        self._rows += request.rows
        self._within_s = min(self._within_s, request.call.time_remaining_s())


def run_together(requests: Sequence[Request], count_run: CountRun, alone: bool = False) -> list[Tensors]:
    """Run requests as one batch, or in parts if the model's ``max_batch`` is smaller than one request.

    Args:
        requests: Requests that fit into one batch; at least one.
        count_run: Called after each run.
        alone: Whether no other request is in flight.

    Returns:
        The outputs of each request by name, in the order of the requests.
    """
    first = requests[0]
    model, inputs = first.model, first.inputs
    if len(requests) > 1:
        inputs = {name: np.concatenate([request.inputs[name] for request in requests]) for name in inputs}
    rows = sum(request.rows for request in requests)
    parts = []
    for row in range(0, rows, model.max_batch):
        part = {name: array[row : row + model.max_batch] for name, array in inputs.items()}
        started = time.perf_counter()
        parts.append(model.run(part, first.optional, alone))
        count_run(model, min(rows - row, model.max_batch), round((time.perf_counter() - started) * 1e6))
    outputs = parts[0] if len(parts) == 1 else {n: np.concatenate([one[n] for one in parts]) for n in parts[0]}
    ends = accumulate(request.rows for request in requests)
    return [
        {name: output[end - request.rows : end] for name, output in outputs.items()}
        for request, end in zip(requests, ends, strict=True)
    ]


def count_rows(inputs: Tensors) -> int:
    """Return the number of rows of a request's inputs."""
    return len(next(iter(inputs.values())))


def reason_dead(call: Call, needed_s: float = 0.0) -> Exception | None:
    """Find out why a request should not run.

    Args:
        call: The call of the request.
        needed_s: The time that the network needs, in seconds.

    Returns:
        The error to end the request with; None if its answer can still be used.
    """
    if call.cancelled():
        return RequestCancelled("the call was cancelled: the network did not run")
    remaining_s = call.time_remaining_s()
    if remaining_s <= 0:
        return DeadlineExpired("the deadline passed: the network did not run")
    if remaining_s <= needed_s:
        remaining_ms, needed_ms = remaining_s * 1e3, needed_s * 1e3
        return DeadlineExpired(
            f"the deadline passes in {remaining_ms:.3g} ms, and the network needs {needed_ms:.3g} ms: the network did "
            "not run"
        )
    return None


def check_alive(call: Call) -> None:
    """Check that a call is neither cancelled nor past its deadline.

    Raises:
        RequestCancelled: The call was cancelled.
        DeadlineExpired: Its deadline has passed.
    """
    if (error := reason_dead(call)) is not None:
        raise error
