"""Batching without waiting: a free slot runs a request at once, what waits is taken together by the next free slot.

There is no timer. Each slot is a thread. Requests come from other threads, and their answers go back by a callback.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple

from evalmode.artifact.tensors import Tensors
from evalmode.errors import QueueFull
from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from evalmode.runtime.model import Model
from serving.engine.batch import Batch, CountRun, Request, reason_dead, run_together
from serving.engine.pace import Pace
from serving.threads import start_threads

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
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
class Job(Request):
    """A request that waits for a slot.

    Attributes:
        reply: Makes the reply of the answer; called by the slot's thread.
        done: Called once by the slot's thread, with the reply or with the error in its place; raises nothing.
        waits: Whether it waits for a slot.
    """

    reply: Callable[[Answer], Any]
    done: Callable[[Any], object]
    waits: bool = False


class Batcher:
    """Runs requests on a fixed number of slots.

    Args:
        slots: Inferences that may run at the same time.
        limits: ``max_batch`` and ``max_queue``.
        count_run: Called after every run with the model, the number of inputs, and microseconds.

    Attributes:
        pace: How long requests take.

    Raises:
        ThreadsUnavailable: The system starts too few threads.
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
        self._aside = 0  # of these, the ones that nobody waits for
        self._waiting: deque[Job] = deque()
        self._handed: SimpleQueue[Job | None] = SimpleQueue()  # to slots that were free; None: to end
        start_threads(slots, "slot", self._work)

    def close(self) -> None:
        """End the slots' threads once nothing runs."""
        for _ in range(self.slots):
            self._handed.put(None)

    def load(self) -> Load:
        """How much there is to do now."""
        with self._lock:
            return Load(self.slots, self.slots - self._free_slots, len(self._waiting), self._admitted)

    def queue_full(self) -> QueueFull:
        """The error of a request that comes while every place is taken."""
        return QueueFull(
            f"{self._places} requests are in flight, the limit: retry later or add a replica",
            limit_requests=self._places,
        )

    def is_busy(self) -> bool:
        """Whether a request that comes now may have to wait."""
        return self._admitted - self._aside >= self.slots or self._admitted >= self._places

    def check(self, remaining_s: float) -> None:
        """Check whether a request that comes now would get a place and its answer in time.

        Args:
            remaining_s: Seconds until its deadline.

        Raises:
            QueueFull: Beside one a slot, ``max_queue`` requests are in flight, or those that are will take longer.
        """
        if self._admitted >= self._places:
            raise self.queue_full()
        ahead = self._admitted - self._aside
        if ahead >= self.slots and 0 < remaining_s < self.pace.expect_s(ahead):  # one that has passed is found later
            raise queue_too_long()

    def admit(self, remaining_s: float = math.inf) -> int:
        """Take a place, from arrival to answer, so that a request too many is refused before it costs a decode.

        Args:
            remaining_s: See ``check``.

        Returns:
            How many requests were in flight before it.

        Raises:
            QueueFull: See ``check``.
        """
        with self._lock:
            self.check(remaining_s)
            self._admitted += 1
            return self._admitted - self._aside - 1

    def set_aside(self) -> None:
        """Note that an admitted request, a large image say, waits or runs where it holds up no other."""
        with self._lock:
            self._aside += 1

    def give_back(self, aside: bool = False) -> None:
        """Free the place of a request.

        Args:
            aside: Whether it was set aside.
        """
        with self._lock:
            self._admitted -= 1
            self._aside -= aside

    def submit(self, job: Job) -> None:
        """Run a job: at once and alone where a slot is free, else together with others that wait.

        Where its call is cancelled or too late by then, it ends with that error, and the network does not run.
        """
        with self._lock:
            if not self._free_slots:
                job.waits = True
                self._waiting.append(job)
                return
            self._free_slots -= 1
        self._handed.put(job)

    def withdraw(self, job: Job) -> bool:
        """Take back a job that still waits: it is never run, and never done.

        Returns:
            Whether it still waited.
        """
        with self._lock:
            if job.waits:
                job.waits = False
                self._waiting.remove(job)
                return True
            return False

    def _work(self) -> None:
        """One slot."""
        while job := self._handed.get():
            batch = [job]
            if (dead := reason_dead(job.call)) is not None:
                _hand_out(job, dead)
                batch = self._take()
            while batch:
                self._run_batch(batch)
                batch = self._take()
            del job  # else it would live until the next comes

    def _run_batch(self, batch: list[Job]) -> None:
        """Run what was taken together, then hand out the replies."""
        done = [(job, self._reply(job, outcome)) for job, outcome in self._answer(batch)]
        for job, reply in done:
            _hand_out(job, reply)

    def _reply(self, job: Job, outcome: Answer | Exception) -> Any:
        if isinstance(outcome, Exception):
            return outcome
        try:
            return job.reply(outcome)
        except Exception as error:
            return error

    def _answer(self, batch: list[Job]) -> list[tuple[Job, Answer | Exception]]:
        """Run requests as one batch; where that fails, each alone: one's values must not cost the others' answers."""
        started = time.perf_counter()
        try:
            answers = run_together(batch, self._count_run)
        except Exception as error:
            if len(batch) == 1:
                return [(batch[0], error)]
            each: list[tuple[Job, Answer | Exception]] = []
            for job in batch:
                dead = reason_dead(job.call)
                each += self._answer([job]) if dead is None else [(job, dead)]
            return each
        inference_us = round((time.perf_counter() - started) * 1e6)
        return [
            (job, Answer(outputs, round((started - job.arrived) * 1e6), inference_us))
            for job, outputs in zip(batch, answers, strict=True)
        ]

    def _take(self) -> list[Job]:
        """The first that waits and may still run, with all that fit into its batch; else the slot becomes free."""
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
            _hand_out(job, dead)
        return batch.requests


def _hand_out(job: Job, outcome: Any) -> None:
    """Call ``done``; whatever it does, the slot goes on."""
    try:
        job.done(outcome)
    except Exception:
        log.exception("an answer could not be handed out")


def queue_too_long() -> QueueFull:
    """What a request is refused with that would be answered after its deadline."""
    return QueueFull("the requests in flight take longer than this one may wait: retry later, or set a longer deadline")


def count_slots(models: Iterable[Model]) -> int:
    """Inferences that may run at the same time: as many as CPUs; one on a GPU, which larger batches fill instead."""
    limits = [model.provider.max_slots for model in models if model.provider.max_slots]
    return min(limits, default=count_cpus())
