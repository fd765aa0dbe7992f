"""Requests, and what may run together: of one model, and done before the deadline of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

import numpy as np

from evalmode.artifact.tensors import Tensors
from evalmode.errors import DeadlineExpired, RequestCancelled
from evalmode.runtime.model import Model

CountRun = Callable[[Model, int, int], None]  # the model, how many inputs, microseconds
BATCH_S = 0.02  # what one batch may take, where a single request does not take more: all in it wait for its end


class Call(Protocol):
    """What a request knows of its caller."""

    def time_remaining_s(self) -> float:
        """Seconds until the caller's deadline, at most ``threading.TIMEOUT_MAX``."""

    def waited_s(self) -> float:
        """Seconds since the call arrived, where it had to wait before anybody read it."""

    def cancelled(self) -> bool:
        """True once the caller went away."""


@dataclass(eq=False)
class Request:
    """Inputs that a caller wants run: tensors by name, the first axis of each its own batch.

    Attributes:
        model: where.
        inputs: at most ``max_batch`` of them.
        call: who asks.
        arrived: when, by ``time.perf_counter``.
        rows: how many inputs.
    """

    model: Model
    inputs: Tensors
    call: Call
    arrived: float
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = count_rows(self.inputs)
        self._sides = {name: array.shape[1:] for name, array in self.inputs.items()}

    def fits(self, other: Request) -> bool:
        """Whether both can be one batch: of one model, and equal in every side that a network leaves open."""
        return self.model is other.model and self._sides == other._sides


Asked = TypeVar("Asked", bound=Request)


class Batch(Generic[Asked]):
    """Requests that may run together: of one model, and done before the deadline of each.

    Args:
        limit: how many inputs.

    Attributes:
        requests: those that joined.
    """

    def __init__(self, limit: int) -> None:
        self.requests: list[Asked] = []
        self._rows = 0
        self._limit = limit
        self._within_s = BATCH_S
        self._row_s = 0.0

    def has_room_for(self, request: Asked) -> bool:
        """Whether one more may join those that are in it."""
        rows = self._rows + request.rows
        return (
            request.fits(self.requests[0])
            and rows <= min(self._limit, request.model.max_batch)
            and rows * self._row_s <= min(self._within_s, request.call.time_remaining_s())
        )

    def add(self, request: Asked) -> None:
        """Let a request join."""
        self._row_s = self._row_s or request.model.expect_s(1)
        self.requests.append(request)
        self._rows += request.rows
        self._within_s = min(self._within_s, request.call.time_remaining_s())


def run_together(requests: Sequence[Request], count_run: CountRun) -> list[Tensors]:
    """Run requests as one batch; in pieces, where one is more than the model runs at once.

    Returns:
        The outputs of each, by name.
    """
    model, first = requests[0].model, requests[0].inputs
    inputs = first if len(requests) == 1 else {n: np.concatenate([one.inputs[n] for one in requests]) for n in first}
    rows = sum(request.rows for request in requests)
    pieces = []
    for row in range(0, rows, model.max_batch):
        piece = {name: array[row : row + model.max_batch] for name, array in inputs.items()}
        started = time.perf_counter()
        pieces.append(model.run(piece))
        count_run(model, min(rows - row, model.max_batch), round((time.perf_counter() - started) * 1e6))
    outputs = pieces[0] if len(pieces) == 1 else {n: np.concatenate([one[n] for one in pieces]) for n in pieces[0]}
    ends = accumulate(request.rows for request in requests)
    return [
        {name: output[end - request.rows : end] for name, output in outputs.items()}
        for request, end in zip(requests, ends, strict=True)
    ]


def count_rows(inputs: Tensors) -> int:
    """How many inputs a request holds."""
    return len(next(iter(inputs.values())))


def reason_dead(call: Call, needed_s: float = 0.0) -> Exception | None:
    """Why nobody would read the answer to a call, if the network takes ``needed_s`` for it."""
    if call.cancelled():
        return RequestCancelled("the caller cancelled: the network did not run")
    remaining_s = call.time_remaining_s()
    if remaining_s <= 0:
        return DeadlineExpired("the deadline passed: the network did not run")
    if remaining_s <= needed_s:
        told = f"in {remaining_s * 1e3:.3g} ms, and it takes {needed_s * 1e3:.3g} ms"
        return DeadlineExpired(f"the deadline passes {told}: the network did not run")
    return None


def check_alive(call: Call) -> None:
    """Raise what a request ends with whose caller went away or whose deadline passed."""
    if (dead := reason_dead(call)) is not None:
        raise dead
