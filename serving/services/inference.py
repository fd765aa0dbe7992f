"""The path of every inference request, whatever its protocol: admission, parsing, decoding, inference, reply.

Short steps run in the thread that received the request. Images are decoded, the network runs, and the reply is written
in slots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from evalmode.artifact.tensors import Tensors
from evalmode.runtime.model import Model
from serving.engine.call import Call, Sooner
from serving.engine.executor import Answer, Executor, Request, make_run
from serving.engine.job import Decode, Job
from serving.services.statistics import Statistics

QUICK_BYTES = 64 * 1024  # parsing a message of this size takes less time than waking another thread
TIMER_S = 1.0  # the longest timer: a timer cannot be cancelled, and keeps its request in memory


class Timed(NamedTuple):
    """The outputs of one request and the durations of its phases.

    Attributes:
        outputs: The request's rows of each output, by name, with the batch as the first axis.
        decode_us: The time for parsing and decoding, in microseconds.
        wait_us: The time that the request waited for a slot, in microseconds.
        inference_us: The time that its batch ran, in microseconds.
    """

    outputs: Tensors
    decode_us: int
    wait_us: int
    inference_us: int


class Read(NamedTuple):
    """A request that is ready to run.

    Attributes:
        inputs: The inputs of the model by name, with the batch as the first axis.
        write: Returns the reply for the outputs.
        call: The call, with the earlier of its own deadline and the one in the request.
        optional: The optional outputs that the request asks for, by name, in the order of the model.
    """

    inputs: Tensors
    write: Callable[[Timed], Any]
    call: Call
    optional: tuple[str, ...] = ()


class Reading(NamedTuple):
    """A request that has been checked, but whose images are not decoded yet.

    Attributes:
        cost_bytes: The peak memory of decoding, in bytes; 0 if the request holds no images.
        finish: Decodes the images.
        call: See ``Read``.
    """

    cost_bytes: int
    finish: Callable[[], Read]
    call: Call


class Service(Protocol):
    """A protocol: what it does before and after the network runs."""

    def has_images(self, request: Any) -> bool:
        """Whether a request holds encoded images, which take long to decode."""

    def find(self, request: Any) -> Model:
        """The model that a request names."""

    def begin(self, request: Any, model: Model, call: Call) -> Reading:
        """Check a request without decoding its images.

        Args:
            request: The request.
            model: The model that it names.
            call: Its call.

        Raises:
            RequestError: The request cannot be answered.
        """


@dataclass(frozen=True)
class Inference:
    """The engine that answers the requests of all protocols.

    Attributes:
        executor: Decodes images and runs networks.
        statistics: Counts answers and refusals.
        default_deadline_s: The deadline of calls without one, in seconds after their arrival; 0: none.
    """

    executor: Executor
    statistics: Statistics
    default_deadline_s: int = 0


class Unparsed(NamedTuple):
    """A message that has not been parsed.

    Attributes:
        parse: Returns the request.
        size_bytes: The memory that ``parse`` takes.
        finish: Converts the reply to what is passed to ``done``.
    """

    parse: Callable[[], Any]
    size_bytes: int
    finish: Callable[[Any], Any]


class Work:
    """A request in progress. It starts when it is constructed.

    Args:
        inference: The engine that answers it.
        service: The service of its protocol.
        message: The message of the request.
        call: The call of the request.
        done: Called once, by any thread, with the converted reply or with an exception.
        later: Calls a function after a number of seconds. It can be called from any thread.
    """

    def __init__(
        self,
        inference: Inference,
        service: Service,
        message: Unparsed,
        call: Call,
        done: Callable[[Any], object],
        later: Callable[[float, Callable[[], object]], object],
    ) -> None:
        self._executor, self._statistics = inference.executor, inference.statistics
        self._service = service
        self._call = call
        self._done = done
        self._later = later
        self._read_us = 0
        self._model: Model | None = None
        self._job: Job | None = None  # None before it is admitted and after its end
        self._ended = False
        parse, size_bytes, self._convert = message
        if inference.default_deadline_s and call.deadline == math.inf:
            self._end_sooner(Sooner(call, call.arrived + inference.default_deadline_s))
        try:
            self._job = job = self._executor.admit(self._call, self._end)
            if size_bytes <= QUICK_BYTES:
                self._read(job, parse())
            else:
                self._decode(job, lambda: self._read(job, parse()), size_bytes)
        except Exception as error:
            self._end(error)

    def withdraw(self) -> None:
        """End the request once it waits: its call was cancelled or its deadline has passed."""
        if (job := self._job) is not None:
            self._executor.withdraw(job)

    def _decode(self, job: Job, step: Callable[[], object], cost_bytes: int = 0) -> None:
        """Run a step in a slot, once ``cost_bytes`` are available."""

        def work() -> None:
            try:
                step()
            except Exception as error:
                self._end(error)

        self._executor.submit(Decode(job, work, self._model, cost_bytes))

    def _end_sooner(self, call: Call) -> None:
        """Replace the call by one with an earlier deadline. The transport watches only the deadline of its own."""
        self._call = call
        self._watch_deadline()

    def _watch_deadline(self) -> None:
        remaining_s = self._call.deadline - time.monotonic()
        if remaining_s <= 0:
            self.withdraw()
        elif not self._ended:
            self._later(min(remaining_s, TIMER_S), self._watch_deadline)

    def _read(self, job: Job, request: Any) -> None:
        model = self._model = self._service.find(request)
        if self._executor.has_slot() or not self._service.has_images(request):  # headers may take long to read, too
            self._begin(job, model, request)
        else:
            self._decode(job, lambda: self._begin(job, model, request))

    def _begin(self, job: Job, model: Model, request: Any) -> None:
        started = time.monotonic()
        reading = self._service.begin(request, model, self._call)
        if reading.call is not self._call:
            job.call = reading.call
            self._end_sooner(reading.call)
        if self._executor.decodes.is_small(reading.cost_bytes):
            self._finish(job, model, reading, started)
            return
        self._read_us = round((time.monotonic() - started) * 1e6)
        self._decode(job, lambda: self._finish(job, model, reading, time.monotonic()), reading.cost_bytes)

    def _finish(self, job: Job, model: Model, reading: Reading, started: float) -> None:
        read = reading.finish()
        self._read_us += round((time.monotonic() - started) * 1e6)
        request = Request(read.inputs, read.optional, partial(self._reply, model, read))
        self._executor.submit(make_run(job, model, request))

    def _reply(self, model: Model, read: Read, answer: Answer) -> Any:
        timed = Timed(answer.outputs, self._read_us, answer.wait_us, answer.inference_us)
        reply = self._convert(read.write(timed))
        self._statistics.count_answer(model, read.inputs, *timed)
        return reply

    def _end(self, outcome: Any) -> None:
        """Give back the place of the request, count the outcome and pass it on."""
        job, self._job = self._job, None  # also since the job refers to this object: the cycle would keep the model
        self._ended = True
        failed = isinstance(outcome, Exception)
        if job is not None:
            self._executor.leave(job, answered=not failed)
        if failed:
            try:
                self._statistics.count_refusal(self._model, time.monotonic() - self._call.arrived, outcome)
            except Exception as error:
                outcome = error
        self._done(outcome)
