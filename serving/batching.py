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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from serving.batch import Batch, Call, CountRun, Request, check_alive, reason_dead, run_together
from serving.certificate import Tensors
from serving.cgroups import list_cgroups
from serving.errors import DeadlineExpired, QueueFull
from serving.limits import Limits
from serving.model import Model
from serving.pace import Pace

PRESSED_S = 0.1  # after a request whose deadline was too short for the queue


@dataclass(frozen=True)
class Answer:
    """One request's rows of the outputs, by name, with the time it waited and its batch ran, in microseconds."""

    outputs: Tensors
    wait_us: int
    inference_us: int


class Load(NamedTuple):
    """How much there is to do: slots, those of them that run, requests that wait for one, and all in flight."""

    slots: int
    slots_busy: int
    waiting: int
    in_flight: int


@dataclass(eq=False)
class _Waiting(Request):
    """A request in the thread that brought it."""

    wake: SimpleQueue[None] = field(default_factory=SimpleQueue)
    batch: list[_Waiting] = field(default_factory=list)  # not empty: this request's thread runs it
    taken: bool = False
    answer: Answer | None = None
    error: Exception | None = None
    asleep: deque[_Waiting] = field(default_factory=deque)  # of its batch, in the order in which they are woken
    gone: bool = False  # whether its thread has woken the next


def _wake_next(asleep: deque[_Waiting]) -> None:
    """Wake the next request that has not been woken otherwise, by a cancellation say."""
    while asleep:
        with suppress(IndexError):  # another thread took the last
            if not (following := asleep.popleft()).gone:
                following.wake.put(None)
                return


class Batcher:
    """Runs requests on a fixed number of slots.

    Args:
        slots: inferences that may run at the same time.
        limits: ``max_batch`` and ``max_queue``.
        count_run: told of every run: the model, how many inputs, and microseconds.

    Attributes:
        pace: How long requests take.
    """

    def __init__(self, slots: int, limits: Limits, count_run: CountRun = lambda *_: None) -> None:
        self.slots = slots
        self.pace = Pace()
        self._limits = limits
        self._count_run = count_run
        self._places = slots + limits.max_queue
        self._pressed_until = 0.0
        self._lock = threading.Lock()
        self._free_slots = slots
        self._admitted = 0
        self._waiting: deque[_Waiting] = deque()

    def load(self) -> Load:
        """How much there is to do now."""
        with self._lock:
            return Load(self.slots, self.slots - self._free_slots, len(self._waiting), self._admitted)

    def queue_full(self) -> QueueFull:
        """What a request is refused with while every place is taken."""
        return QueueFull(
            f"{self._places} requests are in flight, the limit: retry later or add a replica",
            limit_requests=self._places,
        )

    def is_full(self) -> bool:
        """Whether every place is taken, by a look without the lock: for threads that must never wait for it."""
        return self._admitted >= self._places

    def is_pressed(self) -> bool:
        """Whether deadlines were too short for the queue just now; without the lock."""
        return time.monotonic() < self._pressed_until

    def refuses(self, remaining_s: float) -> bool:
        """Whether the requests in flight will take longer than a new one may wait; without the lock.

        Args:
            remaining_s: Seconds until its deadline.
        """
        ahead = self._admitted
        late = remaining_s <= 0 or (ahead >= self.slots and self.pace.expect_s(ahead) > remaining_s)
        if late:
            self._pressed_until = time.monotonic() + PRESSED_S
        return late

    @contextmanager
    def admit(self, remaining_s: float = math.inf) -> Iterator[None]:
        """Hold a place from arrival to answer, so that a request too many is refused before it costs a decode.

        Args:
            remaining_s: Seconds until the request's deadline.

        Raises:
            QueueFull: Beside one a slot, ``max_queue`` requests are in flight, or those that are will take longer.
        """
        if remaining_s > 0 and self.refuses(remaining_s):  # one that has passed is found by run
            raise queue_too_long()
        with self._lock:
            if self._admitted >= self._places:
                raise self.queue_full()
            ahead = self._admitted
            self._admitted += 1
        started = time.perf_counter()
        try:
            yield
            self.pace.note(time.perf_counter() - started, ahead)
        finally:
            with self._lock:
                self._admitted -= 1

    def run(
        self, model: Model, inputs: Tensors, call: Call, reply: Callable[[Answer], Any] = lambda answer: answer
    ) -> Any:
        """Run a request's inputs, as one or together with others that wait.

        Args:
            model: where.
            inputs: tensors by name; the first axis of each is the request's own batch, at most ``max_batch``.
            call: who asks.
            reply: Makes the reply of the answer. The requests of a batch do this by turns: if all woke at once, they
                would wait for Python's lock in one line with the thread that receives calls, and new ones would wait.

        Returns:
            What ``reply`` makes.

        Raises:
            DeadlineExpired: the deadline passed before the network ran.
            RequestCancelled: the call was cancelled before the network ran.
        """
        request = _Waiting(model, inputs, call, time.perf_counter())
        check_alive(call)
        with self._lock:
            waits = not self._free_slots  # kept: another thread may take the request before this one looks again
            if waits:
                self._waiting.append(request)
            else:
                self._free_slots -= 1
                request.taken, request.batch = True, [request]
        if waits:
            self._wait(request)
        if request.batch:
            batch, request.batch = request.batch, []  # else the request would hold itself, and its model
            self._run_batch(batch)
        try:
            if request.error is not None:
                raise request.error
            assert request.answer is not None
            return reply(request.answer)
        finally:
            request.gone = True
            _wake_next(request.asleep)

    def _wait(self, request: _Waiting) -> None:
        """Wait to be taken by a slot, then for the answer or, as first of the batch, for the right to run it."""
        request.call.wake_on_cancel(partial(request.wake.put, None))
        with suppress(Empty):
            request.wake.get(timeout=min(max(0.0, request.call.time_remaining_s()), threading.TIMEOUT_MAX))
        with self._lock:
            if not request.taken:
                self._waiting.remove(request)
        if not request.taken:
            check_alive(request.call)
            raise DeadlineExpired("the deadline passed while waiting for a slot: the network did not run")
        while not request.batch and request.answer is None and request.error is None:
            request.wake.get()  # woken by a cancellation although taken: the batch is on its way

    def _run_batch(self, batch: list[_Waiting]) -> None:
        """Run what was taken together, pass the slot on, then wake the others."""
        try:
            self._answer(batch)
        finally:
            self._pass_slot_on()
            asleep = deque(batch[1:])
            for request in batch:
                request.asleep = asleep
            for _ in range(1, self.slots):  # this thread will wake one, too
                _wake_next(asleep)

    def _answer(self, batch: list[_Waiting]) -> None:
        """Run requests as one batch; where that fails, each alone: one's values must not cost the others' answers."""
        started = time.perf_counter()
        try:
            answers = run_together(batch, self._count_run)
            inference_us = round((time.perf_counter() - started) * 1e6)
            for request, outputs in zip(batch, answers, strict=True):
                request.answer = Answer(outputs, round((started - request.arrived) * 1e6), inference_us)
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for request in batch:
                request.error = reason_dead(request.call)
                if request.error is None:
                    self._answer([request])

    def _pass_slot_on(self) -> None:
        """Give the slot to the first that waits and may still run, with all that fit into its batch; else free it."""
        with self._lock:
            batch = Batch[_Waiting](self._limits.max_batch)
            left: deque[_Waiting] = deque()
            for request in self._waiting:
                needed_s = 0.0 if batch.requests else request.model.expect_s(request.rows)
                if batch.requests and not batch.has_room_for(request):
                    left.append(request)
                elif (dead := reason_dead(request.call, needed_s)) is not None:
                    request.taken, request.error = True, dead
                    request.wake.put(None)
                else:
                    request.taken = True
                    batch.add(request)
            self._waiting = left
            if batch.requests:
                first = batch.requests[0]
                first.batch = batch.requests
                first.wake.put(None)
            else:
                self._free_slots += 1


def queue_too_long() -> QueueFull:
    """What a request is refused with that would be answered after its deadline."""
    return QueueFull("the requests in flight take longer than this one may wait: retry later, or set a longer deadline")


def count_slots(models: Iterable[Model]) -> int:
    """Inferences that may run at the same time: as many as CPUs; one on a GPU, which larger batches fill instead."""
    return 1 if any(model.provider == "CUDA" for model in models) else count_cpus()


def count_cpus(root: Path = Path("/")) -> int:
    """CPUs this process may use: its affinity, cut to the quotas of its cgroup and of those around it, at least 1."""
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quotas = (_read_quota(cgroup) for cgroup in list_cgroups("cpu", root))
    return max(1, min([available, *(quota for quota in quotas if quota)]))


def _read_quota(cgroup: Path) -> int | None:
    """CPUs that a cgroup may use, rounded up; None: as many as there are."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
            return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
