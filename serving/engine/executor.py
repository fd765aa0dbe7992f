"""Runs what the scheduler starts: in threads of its own, or in a thread of the transport."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from evalmode.artifact.tensors import Tensors
from evalmode.runtime.model import Model
from serving.engine.call import Call, find_reason_to_end
from serving.engine.job import Decode, Job, Run, Step
from serving.engine.lane import Batch
from serving.engine.scheduler import SHARE_S, Load, Scheduler, Start, Task
from serving.threads import start_threads

log = logging.getLogger(__name__)

FREED_S = 0.02  # between two looks whether another worker has given back a slot

CountRun = Callable[[Model, int, int], None]  # the model, the number of inputs, microseconds


class Answer(NamedTuple):
    """The answer of a network to one request.

    Attributes:
        outputs: Its rows of the outputs, by name.
        wait_us: The time that it waited for a slot, in microseconds.
        inference_us: The time that its batch ran, in microseconds.
    """

    outputs: Tensors
    wait_us: int
    inference_us: int


class Request(NamedTuple):
    """The content of a ``Run``.

    Attributes:
        inputs: Arrays by input name, with the batch as the first axis.
        optional: The optional outputs to compute, by name.
        reply: Makes the reply from the answer.
    """

    inputs: Tensors
    optional: tuple[str, ...]
    reply: Callable[[Answer], Any]


class Executor:
    """Runs the steps of jobs in slots.

    There is a thread for each slot, and one for each slot of large decodes. A thread that ends a task takes the next
    one, so that under load no task changes threads.

    Args:
        scheduler: Decides what runs when. Only this object uses it.
        count_run: Called after every run with the model, the number of inputs, and microseconds.

    Attributes:
        slots: The number of slots.
        threads: The threads.

    Raises:
        ThreadsUnavailable: The system cannot start enough threads.
    """

    def __init__(self, scheduler: Scheduler, count_run: CountRun = lambda *_: None) -> None:
        self.slots = scheduler.slots
        self.decodes = scheduler.decodes
        self._scheduler = scheduler
        self._count_run = count_run
        self._lock = threading.Lock()
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()  # None ends a thread
        self._large: SimpleQueue[Task | None] = SimpleQueue()  # the same, of large decodes
        # ``defers``: what this thread submits starts later. ``until``: when it should no longer decode by itself.
        self._here = threading.local()
        self.threads = [
            *start_threads(self.slots, "slot", lambda: self._serve(self._tasks)),
            *start_threads(self.slots, "large", lambda: self._serve(self._large)),
        ]

    def close(self) -> None:
        """End each thread once it is free."""
        for _ in range(self.slots):
            self._tasks.put(None)
            self._large.put(None)

    def load(self) -> Load:
        """Return the current load."""
        with self._lock:
            return self._scheduler.load

    def serve(self, models: Iterable[Model]) -> None:
        """See ``Scheduler.serve``."""
        with self._lock:
            self._scheduler.serve(models)

    def is_busy(self) -> bool:
        """See ``Scheduler.is_busy``. Takes no lock."""
        return self._scheduler.is_busy()

    def has_free_slot(self) -> bool:
        """See ``Scheduler.has_free_slot``. Takes no lock."""
        return self._scheduler.has_free_slot()

    def check(self, deadline: float) -> None:
        """See ``Scheduler.check``. Takes no lock."""
        self._scheduler.check(deadline, time.monotonic())

    def admit(self, call: Call, done: Callable[[Any], object]) -> Job:
        """Admit a request. See ``Scheduler.admit``.

        Args:
            call: Its call.
            done: Called once with the reply or the exception.
        """
        with self._lock:
            return self._scheduler.admit(call, done, time.monotonic())

    def submit(self, step: Step) -> None:
        """Run the next step of a job when its turn comes. See ``Scheduler.submit``."""
        now = time.monotonic()
        with self._lock:
            self._scheduler.submit(step, now)
            if getattr(self._here, "defers", False):
                return
            start = self._scheduler.start(now)
        self._pass_on(start)

    def withdraw(self, job: Job) -> bool:
        """End a job whose call was cancelled or whose deadline has passed: at once if it waits.

        Returns:
            Whether it was waiting.
        """
        with self._lock:
            error = self._scheduler.withdraw(job)
        if error is None:
            return False
        _finish(job, error)
        self.start()  # other decodes may have waited behind it
        return True

    def start(self) -> None:
        """Start what may start, in the threads of this object."""
        self._pass_on(self._start())

    def take_freed_slots(self, stop: threading.Event) -> None:
        """Start what waits for a slot that another worker has given back. Returns once ``stop`` is set.

        Args:
            stop: See above.
        """
        while not stop.wait(FREED_S):
            if self._scheduler.load.waiting:
                self.start()

    def leave(self, job: Job, answered: bool) -> None:
        """Give back the place of a job that has ended. See ``Scheduler.leave``.

        Args:
            job: The job.
            answered: Whether it has a reply.
        """
        with self._lock:
            self._scheduler.leave(job, answered, time.monotonic())

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Begin requests in this thread, in a slot if one is free. ``help`` or ``start`` starts what it submits."""
        with self._lock:
            has_slot = self._scheduler.occupy()
        try:
            with self._deferring(time.monotonic() + SHARE_S if has_slot else 0.0):
                yield
        finally:
            if has_slot:
                with self._lock:
                    self._scheduler.vacate()

    def has_slot(self) -> bool:
        """Return whether this thread holds a slot in which it may decode a small image."""
        return time.monotonic() < getattr(self._here, "until", 0.0)

    @contextmanager
    def _deferring(self, until: float) -> Iterator[None]:
        self._here.defers, self._here.until = True, until
        try:
            yield
        finally:
            self._here.defers, self._here.until = False, 0.0

    def help(self) -> bool:
        """Start what may start, and run it in this thread: small decodes, and then one batch.

        Returns:
            Whether there was any.
        """
        ran, task = False, self._pass_on(self._start(), keep=True)
        while task is not None:
            self._execute(task)
            ran = True
            if isinstance(task, Batch):
                with self._lock:
                    self._scheduler.finish(task, time.monotonic())
                break
            task = self._pass_on(self._start(finished=task), keep=True)
        return ran

    def _serve(self, tasks: SimpleQueue[Task | None]) -> None:
        """Run the tasks of a queue until the executor is closed."""
        while task := tasks.get():
            while task is not None:
                self._execute(task)
                task = self._pass_on(self._start(finished=task), keep=tasks is self._tasks)

    def _start(self, finished: Task | None = None) -> Start:
        with self._lock:
            now = time.monotonic()
            if finished is not None:
                self._scheduler.finish(finished, now)
            return self._scheduler.start(now)

    def _pass_on(self, start: Start, keep: bool = False) -> Task | None:
        """Give tasks to the threads, and end jobs.

        Args:
            start: What has started.
            keep: Whether this thread runs one of the tasks. It does not run a large decode.

        Returns:
            The task that this thread runs.
        """
        tasks, kept = start.tasks, None
        if keep and tasks and not self._is_large(tasks[-1]):
            kept = tasks.pop()
        for task in tasks:
            (self._large if self._is_large(task) else self._tasks).put(task)
        for job, error in start.ended:
            _finish(job, error)
        return kept

    def _is_large(self, task: Task) -> bool:
        return isinstance(task, Decode) and not self.decodes.is_small(task.cost_bytes)

    def _execute(self, task: Task) -> None:
        if isinstance(task, Batch):
            done = [(run.job, _make_reply(run, outcome)) for run, outcome in self._run(task.runs, task.alone)]
            for job, reply in done:  # together, so that a transport can send them together
                _finish(job, reply)
            return
        try:
            with self._deferring(math.inf):  # this thread starts the next step itself
                task.work()
        except BaseException:
            log.exception("decoding a request failed")

    def _run(self, runs: list[Run], alone: bool) -> list[tuple[Run, Answer | Exception]]:
        """Execute runs as one batch. If that fails, execute each alone: one bad input must not fail other requests."""
        started = time.monotonic()
        try:
            outputs = self._compute(runs, alone)
        except Exception as error:
            if len(runs) == 1:
                return [(runs[0], error)]
            each: list[tuple[Run, Answer | Exception]] = []
            for run in runs:
                reason = find_reason_to_end(run.job.call, time.monotonic())
                each += [(run, reason)] if reason is not None else self._run([run], False)
            return each
        inference_us = round((time.monotonic() - started) * 1e6)
        return [
            (run, Answer(rows, round((started - run.since) * 1e6), inference_us))
            for run, rows in zip(runs, outputs, strict=True)
        ]

    def _compute(self, runs: list[Run], alone: bool) -> list[Tensors]:
        """Compute the outputs of each run, in parts if one is larger than the ``max_batch`` of its model."""
        first: Request = runs[0].content
        model: Any = runs[0].model
        inputs = first.inputs
        if len(runs) > 1:
            inputs = {name: np.concatenate([run.content.inputs[name] for run in runs]) for name in inputs}
        rows = sum(run.rows for run in runs)
        parts = []
        for row in range(0, rows, model.max_batch):
            part = {name: array[row : row + model.max_batch] for name, array in inputs.items()}
            started = time.perf_counter()
            parts.append(model.run(part, first.optional, alone))
            self._count_run(model, min(rows - row, model.max_batch), round((time.perf_counter() - started) * 1e6))
        outputs = parts[0] if len(parts) == 1 else {n: np.concatenate([one[n] for one in parts]) for n in parts[0]}
        if len(runs) == 1:
            return [outputs]
        ends = accumulate(run.rows for run in runs)
        return [
            {name: output[end - run.rows : end] for name, output in outputs.items()}
            for run, end in zip(runs, ends, strict=True)
        ]


def make_run(job: Job, model: Model, request: Request) -> Run:
    """Make the step that runs a network on a request.

    Args:
        job: The job of the request.
        model: The model.
        request: The request.
    """
    shapes = tuple([(name, array.shape[1:]) for name, array in request.inputs.items()])
    rows = len(next(iter(request.inputs.values())))
    return Run(job, model, rows, (shapes, request.optional), request)


def _make_reply(run: Run, outcome: Answer | Exception) -> Any:
    if isinstance(outcome, Exception):
        return outcome
    try:
        return run.content.reply(outcome)
    except Exception as error:
        return error


def _finish(job: Job, outcome: Any) -> None:
    """Call ``done``. Its exceptions are logged, so that the slot continues."""
    try:
        job.done(outcome)
    except Exception:
        log.exception("the callback of a request failed")
