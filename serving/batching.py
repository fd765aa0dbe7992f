"""Batching without waiting: a free slot runs a request at once, what waits is taken together by the next free slot.

There is no timer and no batching thread. A request runs in the thread that brought it; where it has to wait, the
thread that frees a slot hands it to the first in line together with the others that wait for the same model.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.certificate import Tensors
from serving.errors import DeadlineExpired, QueueFull, RequestCancelled
from serving.limits import Limits
from serving.model import Model

BATCH_S = 0.02  # what one batch may take, where a single request does not take more: all in it wait for its end


class Call(Protocol):
    """What a request knows of its caller."""

    def time_remaining_s(self) -> float:
        """Seconds until the caller's deadline, at most ``threading.TIMEOUT_MAX``."""

    def cancelled(self) -> bool:
        """True once the caller went away."""

    def wake_on_cancel(self, event: threading.Event) -> None:
        """Set ``event`` when the caller goes away."""


@dataclass(frozen=True)
class Answer:
    """One request's rows of the outputs, by name, with the time it waited and its batch ran, in microseconds."""

    outputs: Tensors
    wait_us: int
    inference_us: int


@dataclass(eq=False)
class _Request:
    model: Model
    inputs: Tensors
    rows: int
    call: Call
    arrived: float
    wake: threading.Event = field(default_factory=threading.Event)
    batch: list[_Request] = field(default_factory=list)  # not empty: this request's thread runs it
    taken: bool = False
    answer: Answer | None = None
    error: Exception | None = None

    def fits(self, other: _Request) -> bool:
        """Whether both can be one batch: of one model, and equal in every side that a network leaves open."""
        sides = ((array.shape[1:], other.inputs[name].shape[1:]) for name, array in self.inputs.items())
        return self.model is other.model and all(mine == theirs for mine, theirs in sides)


class Batcher:
    """Runs requests on a fixed number of slots.

    Args:
        slots: inferences that may run at the same time.
        limits: ``max_batch`` and ``max_queue``.
        count_run: told of every run: the model, how many inputs, and microseconds.
    """

    def __init__(
        self, slots: int, limits: Limits, count_run: Callable[[Model, int, int], None] = lambda *_: None
    ) -> None:
        self.slots = slots
        self._limits = limits
        self._count_run = count_run
        self._lock = threading.Lock()
        self._free_slots = slots
        self._admitted = 0
        self._waiting: deque[_Request] = deque()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place from arrival to answer, so that a request too many is refused before it costs a decode.

        Raises:
            QueueFull: beside one a slot, ``max_queue`` requests are in flight.
        """
        with self._lock:
            if self._admitted >= (places := self.slots + self._limits.max_queue):
                raise QueueFull(
                    f"{places} requests are in flight, the limit: retry later or add a replica", limit_requests=places
                )
            self._admitted += 1
        try:
            yield
        finally:
            with self._lock:
                self._admitted -= 1

    def run(self, model: Model, inputs: Tensors, call: Call) -> Answer:
        """Run a request's inputs, as one or together with others that wait.

        Args:
            model: where.
            inputs: tensors by name; the first axis of each is the request's own batch, at most ``max_batch``.
            call: who asks.

        Raises:
            DeadlineExpired: the deadline passed before the network ran.
            RequestCancelled: the caller went away before the network ran.
        """
        request = _Request(model, inputs, _count_rows(inputs), call, time.perf_counter())
        check_alive(call)
        with self._lock:
            if self._free_slots:
                self._free_slots -= 1
                request.taken, request.batch = True, [request]
            else:
                self._waiting.append(request)
        if not request.taken:
            self._wait(request)
        if request.batch:
            self._run_batch(request.batch)
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer

    def _wait(self, request: _Request) -> None:
        """Wait to be taken by a slot, then for the answer or, as first of the batch, for the right to run it."""
        request.call.wake_on_cancel(request.wake)
        request.wake.wait(min(request.call.time_remaining_s(), threading.TIMEOUT_MAX))
        with self._lock:
            if not request.taken:
                self._waiting.remove(request)
        if not request.taken:
            check_alive(request.call)
            raise DeadlineExpired("the deadline passed while waiting for a slot: the network did not run")
        while not request.batch and request.answer is None and request.error is None:
            request.wake.wait()  # woken by a cancellation although taken: the batch is on its way
            request.wake.clear()

    def _run_batch(self, batch: list[_Request]) -> None:
        """Run what was taken together, pass the slot on, then wake the others."""
        try:
            self._answer(batch)
        finally:
            self._pass_slot_on()
            for request in batch[1:]:
                request.wake.set()

    def _answer(self, batch: list[_Request]) -> None:
        """Run requests as one batch; where that fails, each alone: one's values must not cost the others' answers."""
        started = time.perf_counter()
        try:
            outputs = self._run_together(batch)
            inference_us = round((time.perf_counter() - started) * 1e6)
            row = 0
            for request in batch:
                mine = slice(row, row := row + request.rows)
                rows = {name: output[mine] for name, output in outputs.items()}
                request.answer = Answer(rows, round((started - request.arrived) * 1e6), inference_us)
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for request in batch:
                request.error = _reason_dead(request.call)
                if request.error is None:
                    self._answer([request])

    def _run_together(self, batch: list[_Request]) -> Tensors:
        """Run the inputs of several requests as one batch; in pieces, where one is more than the model runs at once."""
        model, first = batch[0].model, batch[0].inputs
        inputs = first if len(batch) == 1 else {n: np.concatenate([r.inputs[n] for r in batch]) for n in first}
        pieces = []
        for row in range(0, sum(request.rows for request in batch), model.max_batch):
            piece = {name: array[row : row + model.max_batch] for name, array in inputs.items()}
            started = time.perf_counter()
            pieces.append(model.run(piece))
            self._count_run(model, _count_rows(piece), round((time.perf_counter() - started) * 1e6))
        return pieces[0] if len(pieces) == 1 else {n: np.concatenate([piece[n] for piece in pieces]) for n in pieces[0]}

    def _pass_slot_on(self) -> None:
        """Give the slot to the first that waits and may still run, with all that fit into its batch; else free it."""
        with self._lock:
            batch = _Batch(self._limits.max_batch)
            left: deque[_Request] = deque()
            for request in self._waiting:
                needed_s = 0.0 if batch.requests else request.model.expect_s(request.rows)
                if batch.requests and not batch.has_room_for(request):
                    left.append(request)
                elif (dead := _reason_dead(request.call, needed_s)) is not None:
                    request.taken, request.error = True, dead
                    request.wake.set()
                else:
                    request.taken = True
                    batch.add(request)
            self._waiting = left
            if batch.requests:
                first = batch.requests[0]
                first.batch = batch.requests
                first.wake.set()
            else:
                self._free_slots += 1


class _Batch:
    """Requests that may run together: of one model, and done before the deadline of each.

    Args:
        limit: how many inputs.
    """

    def __init__(self, limit: int) -> None:
        self.requests: list[_Request] = []
        self._rows = 0
        self._limit = limit
        self._within_s = BATCH_S

    def has_room_for(self, request: _Request) -> bool:
        """Whether one more may join those that are in it."""
        rows = self._rows + request.rows
        return (
            request.fits(self.requests[0])
            and rows <= min(self._limit, request.model.max_batch)
            and request.model.expect_s(rows) <= min(self._within_s, request.call.time_remaining_s())
        )

    def add(self, request: _Request) -> None:
        """Let a request join."""
        self.requests.append(request)
        self._rows += request.rows
        self._within_s = min(self._within_s, request.call.time_remaining_s())


def _count_rows(inputs: Tensors) -> int:
    return len(next(iter(inputs.values())))


def _reason_dead(call: Call, needed_s: float = 0.0) -> Exception | None:
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
    if (dead := _reason_dead(call)) is not None:
        raise dead


def count_cpus(root: Path = Path("/")) -> int:
    """CPUs this process may use: its affinity, cut to the quotas of its cgroup and of those around it, at least 1."""
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quotas = (_read_quota(cgroup) for cgroup in _list_cgroups(root))
    return max(1, min([available, *(quota for quota in quotas if quota)]))


def _list_cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process's cgroups that may limit its CPUs, and of those around them, of v2 and of v1."""
    try:
        told = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        told = ["0::/", "1:cpu:/"]
    for line in told:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            inside = [part for part in path.split("/") if part not in ("", "..")]
            # In a container the path may be the host's: then its inner folders are not there, and the mount is ours.
            yield from (mount.joinpath(*inside[:depth]) for depth in range(len(inside) + 1))


def _read_quota(cgroup: Path) -> int | None:
    """CPUs that a cgroup may use, rounded up; None: as many as there are."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
            return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
