"""The path of every inference request, whatever its protocol: admission, parsing, decoding, inference, reply.

Short steps run in the thread that received the request, images are decoded in the threads of the decode budget, and
the network and the reply run in a slot.
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
        batcher: Runs networks in slots.
        budget: Decodes images within a memory budget.
        statistics: Counts answers and refusals.
    """

    batcher: Batcher
    budget: DecodeBudget
    statistics: Statistics


class Unparsed(NamedTuple):
    """A message that has not been parsed.

    Attributes:
        parse: Returns the request.
        size_bytes: The memory that ``parse`` takes.
    """

    parse: Callable[[], Any]
    size_bytes: int


class Work:
    """A request in progress. It starts when it is constructed.

    Args:
        inference: The engine that answers it.
        service: The service of its protocol.
        message: The message of the request.
        call: The call of the request.
        done: Called once, by any thread, with the reply or with an exception.
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
        self._batcher, self._budget, self._statistics = inference.batcher, inference.budget, inference.statistics
        self._service = service
        self._call = call
        self._done = done
        self._later = later
        self._started = time.perf_counter()
        self._read_us = 0
        self._ahead = -1  # not admitted
        self._model: Model | None = None
        self._turns: list[Turn] = []
        self._job: Job | None = None
        self._withdrawn = self._ended = False
        self._aside = False  # whether it has waited where it does not delay other requests
        parse, size_bytes = message
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
        """End the request once it waits: its call was cancelled or its deadline has passed."""
        self._withdrawn = True
        self._leave()

    def _leave(self) -> None:
        """End the request if it is waiting at the moment."""
        job = self._job
        if job is not None and self._batcher.withdraw(job):
            what = "a slot"
        elif any(self._budget.withdraw(turn) for turn in tuple(self._turns)):
            what = "a thread or memory to decode in"
        else:
            return
        self._end(
            RequestCancelled(f"the call was cancelled while waiting for {what}: the network did not run")
            if self._call.cancelled()
            else DeadlineExpired(f"the deadline passed while waiting for {what}: the network did not run")
        )

    def _wait(self, step: Callable[[], object], cost_bytes: int = 0) -> None:
        """Run a step in a thread of the decode budget, once ``cost_bytes`` are available."""

        def work() -> None:
            try:
                step()
            except Exception as error:
                self._end(error)

        if not self._aside and not self._budget.is_small(cost_bytes):
            self._aside = True
            self._batcher.set_aside()
        self._turns.append(self._budget.submit(work, cost_bytes))
        if self._ended:  # the thread has ended the request in the meantime
            self._turns.clear()
        elif self._withdrawn:
            self._leave()

    def _watch_deadline(self) -> None:
        """End the request at its own deadline. The transport watches the deadline of the call."""
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
            model,
            read.inputs,
            read.call,
            time.perf_counter(),
            read.optional,
            reply=partial(self._reply, model, read),
            done=self._end,
        )
        self._batcher.submit(self._job)
        if self._withdrawn:
            self._leave()

    def _reply(self, model: Model, read: Read, answer: Answer) -> Any:
        timed = Timed(answer.outputs, self._read_us, answer.wait_us, answer.inference_us)
        self._statistics.count_answer(model, read.inputs, *timed)
        return read.write(timed)

    def _end(self, outcome: Any) -> None:
        """Release the place in the queue, count the outcome and pass it on."""
        seconds = time.perf_counter() - self._started
        self._ended = True
        self._job = None  # the job and the turns refer to this object: the cycle would keep the model in memory
        self._turns.clear()
        if self._ahead >= 0:
            self._batcher.give_back(self._aside)
        if isinstance(outcome, Exception):
            self._statistics.count_refusal(self._model, seconds, outcome)
        elif not self._aside:
            self._batcher.pace.note(seconds, self._ahead)
        self._done(outcome)
