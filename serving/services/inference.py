"""The one path of every inference, whatever the protocol: take a place, parse, find the model, read, run, reply.

Each step runs where it costs others least: what is quick in the thread that brought the request, images in the threads
of the decode budget, the network and the reply in a slot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from evalmode.artifact.tensors import Tensors
from evalmode.errors import DeadlineExpired, RequestCancelled
from evalmode.runtime.model import Model
from serving.engine.batch import Call, check_alive
from serving.engine.batching import Answer, Batcher, Job
from serving.engine.decoding import DecodeBudget, Turn
from serving.services.statistics import Statistics

QUICK_BYTES = 64 * 1024  # a message up to this size is parsed in less time than another thread takes to begin
TIMER_S = 1.0  # a timer cannot be taken back and holds its request: none is longer


class Timed(NamedTuple):
    """A request's rows of the outputs, by name, and where its time went, in microseconds."""

    outputs: Tensors
    decode_us: int
    wait_us: int
    inference_us: int


class Read(NamedTuple):
    """A request that has been read.

    Attributes:
        inputs: As the model takes them.
        write: Makes a reply of the outputs.
        call: The call, with the deadline that the request itself asks for.
    """

    inputs: Tensors
    write: Callable[[Timed], Any]
    call: Call


class Reading(NamedTuple):
    """A request that has been checked, but whose images are not decoded yet.

    Attributes:
        cost_bytes: The memory that decoding takes at once; 0 where there are no images.
        finish: Decodes them.
        call: See ``Read``.
    """

    cost_bytes: int
    finish: Callable[[], Read]
    call: Call


class Service(Protocol):
    """What a protocol does before and after the network runs."""

    def has_images(self, request: Any) -> bool:
        """Whether a request holds encoded images, which take long to read."""

    def find(self, request: Any) -> Model:
        """The model that a request asks for."""

    def begin(self, request: Any, model: Model, call: Call) -> Reading:
        """Check a request, but decode nothing."""


@dataclass(frozen=True)
class Inference:
    """What requests of any protocol are answered with.

    Attributes:
        batcher: Where networks run.
        budget: Where images are decoded.
        statistics: Where answers and refusals are counted.
    """

    batcher: Batcher
    budget: DecodeBudget
    statistics: Statistics


class Work:
    """A request under way: it begins at once.

    Args:
        inference: What it is answered with.
        service: Its protocol.
        parse: Makes the request of its message.
        size_bytes: The memory that ``parse`` takes.
        call: Its call.
        done: Called once, by any thread, with the reply or with the error in its place.
        later: Calls a function after so many seconds; safe to call from any thread.
    """

    def __init__(
        self,
        inference: Inference,
        service: Service,
        parse: Callable[[], Any],
        size_bytes: int,
        call: Call,
        done: Callable[[Any], object],
        later: Callable[[float, Callable[[], object]], object],
    ) -> None:
        self._batcher, self._budget, self._statistics = inference.batcher, inference.budget, inference.statistics
        self._service = service
        self._call = call
        self._done = done
        self._later = later
        self._started = time.perf_counter()
        self._read_us = 0
        self._ahead = -1  # it has no place
        self._model: Model | None = None
        self._turns: list[Turn] = []
        self._job: Job | None = None
        self._withdrawn = self._ended = False
        self._aside = False  # it has waited where it holds up no other
        try:
            self._ahead = self._batcher.admit(call.time_remaining_s())
            if size_bytes <= QUICK_BYTES:
                request = parse()
                if service.has_images(request):
                    self._wait(partial(self._read, request))
                else:
                    self._read(request)
            else:
                self._wait(lambda: self._read(parse()), size_bytes)
        except Exception as error:
            self._end(error)

    def withdraw(self) -> None:
        """End the request as soon as it waits, since its call is cancelled or its deadline has passed."""
        self._withdrawn = True
        self._leave()

    def _leave(self) -> None:
        """End the request if it waits now."""
        job = self._job
        if job is not None and self._batcher.withdraw(job):
            what = "a slot"
        elif any(self._budget.withdraw(turn) for turn in tuple(self._turns)):
            what = "a thread or memory to decode in"
        else:
            return
        self._end(
            RequestCancelled("the caller cancelled: the network did not run")
            if self._call.cancelled()
            else DeadlineExpired(f"the deadline passed while waiting for {what}: the network did not run")
        )

    def _wait(self, step: Callable[[], object], cost_bytes: int = 0) -> None:
        """Go on in a thread of the decode budget."""

        def work() -> None:
            try:
                step()
            except Exception as error:
                self._end(error)

        if not self._aside and not self._budget.is_small(cost_bytes):
            self._aside = True
            self._batcher.set_aside()
        self._turns.append(self._budget.submit(work, cost_bytes))
        if self._ended:  # by that thread, in the meantime
            self._turns.clear()
        elif self._withdrawn:
            self._leave()

    def _watch_deadline(self) -> None:
        """End the request at the deadline that it has itself; that of its call is the transport's."""
        remaining_s = self._call.time_remaining_s()
        if remaining_s <= 0:
            self.withdraw()
        elif not self._ended:
            self._later(min(remaining_s, TIMER_S), self._watch_deadline)

    def _read(self, request: Any) -> None:
        started = time.perf_counter()
        model = self._model = self._service.find(request)
        check_alive(self._call)
        reading = self._service.begin(request, model, self._call)
        if reading.call is not self._call:
            self._call = reading.call
            self._watch_deadline()
        self._read_us = round((time.perf_counter() - started) * 1e6)
        if self._budget.is_small(reading.cost_bytes):
            self._finish(model, reading)
        else:
            self._wait(partial(self._finish, model, reading), reading.cost_bytes)

    def _finish(self, model: Model, reading: Reading) -> None:
        started = time.perf_counter()
        if reading.cost_bytes:
            check_alive(self._call)
        read = reading.finish()
        self._read_us += round((time.perf_counter() - started) * 1e6)
        self._job = Job(
            model, read.inputs, read.call, time.perf_counter(), partial(self._reply, model, read), self._end
        )
        self._batcher.submit(self._job)
        if self._withdrawn:
            self._leave()

    def _reply(self, model: Model, read: Read, answer: Answer) -> Any:
        timed = Timed(answer.outputs, self._read_us, answer.wait_us, answer.inference_us)
        self._statistics.count_answer(model, read.inputs, *timed)
        return read.write(timed)

    def _end(self, outcome: Any) -> None:
        """Give the place back, count a refusal, hand out the outcome."""
        seconds = time.perf_counter() - self._started
        self._ended = True
        self._job = None  # it and the turns hold this work, which would keep its model until garbage is collected
        self._turns.clear()
        if self._ahead >= 0:
            self._batcher.give_back(self._aside)
        if isinstance(outcome, Exception):
            self._statistics.count_refusal(self._model, seconds, outcome)
        elif not self._aside:
            self._batcher.pace.note(seconds, self._ahead)
        self._done(outcome)
