"""Batching without delay: a free slot runs a request at once; waiting requests run together in the next free slot.

There is no timer. Each slot is a thread. Other threads submit requests and receive the answers through a callback.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from evalmode.artifact.tensors import Tensors
from evalmode.errors import QueueFull
from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from serving.engine.batch import Batch, CountRun, Request, reason_dead, run_together
from serving.engine.pace import Pace
from serving.threads import start_threads

if TYPE_CHECKING:
    from evalmode.runtime.model import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one request.

    Attributes:
        outputs: Its rows of the outputs, by name.
        wait_us: The time it waited for a slot, in microseconds.
        inference_us: The time its batch ran, in microseconds.
    """

    outputs: Tensors
    wait_us: int
    inference_us: int


class Load(NamedTuple):
    """The load of a server.

    Attributes:
        slots: The number of slots.
        slots_busy: The slots that are running a batch.
        waiting: The requests that wait for a slot.
        in_flight: All requests that are admitted and not answered yet.
    """

    slots: int
    slots_busy: int
    waiting: int
    in_flight: int


@dataclass(eq=False)
class Job(Request):
    """A request with its callbacks.

    Attributes:
        reply: Makes the reply from the answer; called on the slot's thread.
        done: Called once on the slot's thread with the reply or the exception; must not raise.
        waits: Whether the request waits for a slot.
    """

    reply: Callable[[Answer], Any] = field(kw_only=True)
    done: Callable[[Any], object] = field(kw_only=True)
    waits: bool = field(default=False, init=False)


class Batcher:
    """Runs requests on a fixed number of slots.

    Args:
        slots: The number of batches that may run at the same time.
        limits: Gives ``max_batch`` and ``max_queue``.
        count_run: Called after every run with the model, the number of inputs, and microseconds.

    Attributes:
        slots: The number of slots.
        pace: Estimates how long requests take.
        threads: The threads of the slots.

    Raises:
        ThreadsUnavailable: The system cannot start enough threads.
    """

    def __init__(self, slots: int, limits: Limits, count_run: CountRun = lambda *_: None) -> None:
        self.slots = slots
        self.pace = Pace()
        self._limits = limits
        self._count_run = count_run
        self._places = slots + limits.max_queue
        self._lock = threading.Lock()
        self._free_slots = slots
        self._admitted = 0
        self._aside = 0  # admitted requests that delay no other request
        self._waiting: deque[Job] = deque()
        self._assigned: SimpleQueue[Job | None] = SimpleQueue()  # to slots that were free; None ends a slot's thread
        self.threads = start_threads(slots, "slot", self._work)

    def close(self) -> None:
        """End each slot's thread once it is free."""
        for _ in range(self.slots):
            self._assigned.put(None)

    def load(self) -> Load:
        """Return the current load."""
        with self._lock:
            return Load(self.slots, self.slots - self._free_slots, len(self._waiting), self._admitted)

    @property
    def in_flight(self) -> int:
        """The number of admitted requests that are not answered yet."""
        return self._admitted

    def queue_full(self) -> QueueFull:
        """Make the error of a request that exceeds the limit on requests in flight."""
        return QueueFull(
            f"{self._places} requests are in flight, the limit: retry later or add a replica",
            limit_requests=self._places,
        )

    def is_busy(self) -> bool:
        """Return whether a new request might have to wait."""
        return self._admitted - self._aside >= self.slots or self._admitted >= self._places

    def check(self, remaining_s: float) -> None:
        """Check whether a new request would be admitted, and answered before its deadline.

        Args:
            remaining_s: The seconds until its deadline.

        Raises:
            QueueFull: ``max_queue`` requests are in flight in addition to one per slot, or the requests in flight will
                take longer than ``remaining_s``.
        """
        if self._admitted >= self._places:
            raise self.queue_full()
        ahead = self._admitted - self._aside
        if ahead >= self.slots and 0 < remaining_s < self.pace.expect_s(ahead):  # an expired one is detected later
            raise queue_too_long()

    def admit(self, remaining_s: float = math.inf) -> int:
        """Admit a request, so that an excess request is refused before its image is decoded.

        Args:
            remaining_s: The seconds until its deadline.

        Returns:
            The number of requests in flight before it.

        Raises:
            QueueFull: See ``check``.
        """
        with self._lock:
            self.check(remaining_s)
            self._admitted += 1
            return self._admitted - self._aside - 1

    def set_aside(self) -> None:
        """Note that an admitted request, for example a large image, delays no other request."""
        with self._lock:
            self._aside += 1

    def give_back(self, aside: bool = False) -> None:
        """Release an admitted request.

        Args:
            aside: Whether ``set_aside`` was called for it.
        """
        with self._lock:
            self._admitted -= 1
            self._aside -= aside

    def submit(self, job: Job) -> None:
        """Run a job: at once and alone if a slot is free, otherwise together with other waiting jobs.

        If its call is cancelled or its deadline has passed before it runs, the job ends with an exception.
        """
        with self._lock:
            if not self._free_slots:
                job.waits = True
                self._waiting.append(job)
                return
            self._free_slots -= 1
        self._assigned.put(job)

    def withdraw(self, job: Job) -> bool:
        """Remove a job from the queue. It is not run and ``done`` is not called.

        Returns:
            Whether it was still waiting.
        """
        with self._lock:
            if job.waits:
                job.waits = False
                self._waiting.remove(job)
                return True
            return False

    def _work(self) -> None:
        """Run jobs on one slot until the batcher is closed."""
        while job := self._assigned.get():
            batch = [job]
            if (error := reason_dead(job.call)) is not None:
                _finish(job, error)
                batch = self._take()
            while batch:
                self._run_batch(batch)
                batch = self._take()
            del job  # otherwise it would be kept alive until the next one is submitted

    def _run_batch(self, batch: list[Job]) -> None:
        """Run a batch, then call ``done`` of its jobs."""
        done = [(job, self._reply(job, outcome)) for job, outcome in self._answer(batch)]
        for job, reply in done:
            _finish(job, reply)

    def _reply(self, job: Job, outcome: Answer | Exception) -> Any:
        if isinstance(outcome, Exception):
            return outcome
        try:
            return job.reply(outcome)
        except Exception as error:
            return error

    def _answer(self, batch: list[Job]) -> list[tuple[Job, Answer | Exception]]:
        """Run jobs as one batch. If that fails, run each alone: one bad input must not fail the other requests."""
        started = time.perf_counter()
        try:
            answers = run_together(batch, self._count_run, alone=self._admitted == 1)
        except Exception as error:
            if len(batch) == 1:
                return [(batch[0], error)]
            each: list[tuple[Job, Answer | Exception]] = []
            for job in batch:
                dead = reason_dead(job.call)
                each += [(job, dead)] if dead is not None else self._answer([job])
            return each
        inference_us = round((time.perf_counter() - started) * 1e6)
        return [
            (job, Answer(outputs, round((started - job.arrived) * 1e6), inference_us))
            for job, outputs in zip(batch, answers, strict=True)
        ]

    def _take(self) -> list[Job]:
        """Take the first waiting job that may still run and all that fit into its batch. If none, free the slot."""
        ended: list[tuple[Job, Exception]] = []
        with self._lock:
            batch = Batch[Job](self._limits.max_batch)
            left: deque[Job] = deque()
            for job in self._waiting:
                needed_s = 0.0 if batch.requests else job.model.expect_s(job.rows)
                if batch.requests and not batch.has_room_for(job):
                    left.append(job)
                    continue
                job.waits = False
                if (dead := reason_dead(job.call, needed_s)) is not None:
                    ended.append((job, dead))
                else:
                    batch.add(job)
            self._waiting = left
            if not batch.requests:
                self._free_slots += 1
        for job, dead in ended:
            _finish(job, dead)
        return batch.requests


def _finish(job: Job, outcome: Any) -> None:
    """Call ``done``. Its exceptions are logged, so that the slot continues."""
    try:
        job.done(outcome)
    except Exception:
        log.exception("the callback of a request failed")


def queue_too_long() -> QueueFull:
    """Make the error of a request that would be answered after its deadline."""
    return QueueFull(
        "the requests in flight take longer than the deadline of this request: retry later, or set a longer deadline"
    )


def count_slots(models: Iterable[Model]) -> int:
    """Choose the number of batches that run at the same time.

    Args:
        models: The models that are loaded.

    Returns:
        The smallest limit of their execution providers, such as 1 on a GPU; the number of CPUs if there is no limit.
    """
    limits = [model.provider.max_slots for model in models if model.provider.max_slots]
    return min(limits, default=count_cpus())
