"""The one path of every inference, whatever the protocol: find the model, take a place, read, run, write the reply."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from serving.batch import Call
from serving.batching import Answer, Batcher
from serving.certificate import Tensors
from serving.model import Model
from serving.services.statistics import Statistics


class Timed(NamedTuple):
    """A request's rows of the outputs, by name, and where its time went, in microseconds."""

    outputs: Tensors
    decode_us: int
    wait_us: int
    inference_us: int


class Read(NamedTuple):
    """A request that has been read.

    Attributes:
        inputs: as the model takes them.
        write: makes a reply of the outputs.
        call: who asks, and for how long: the request itself may say that sooner than its transport.
    """

    inputs: Tensors
    write: Callable[[Timed], Any]
    call: Call


class Service(Protocol):
    """What a protocol does before and after the network runs."""

    def find(self, request: Any) -> Model:
        """The model that a request asks for."""

    def read(self, request: Any, model: Model, call: Call) -> Read:
        """The inputs as the model takes them, and what makes a reply of its outputs."""


class Inference:
    """Answers requests of any protocol, on the slots of one batcher.

    Args:
        batcher: where networks run.
        statistics: where answers and refusals are counted.
    """

    def __init__(self, batcher: Batcher, statistics: Statistics) -> None:
        self._batcher = batcher
        self._statistics = statistics

    def answer(self, service: Service, request: Any, call: Call) -> Any:
        """The reply to a request.

        Raises:
            RequestError: see services/status.py.
        """
        started = time.perf_counter()
        model = None
        try:
            model = service.find(request)
            with self._batcher.admit(call.time_remaining_s()):
                admitted = time.perf_counter()
                read = service.read(request, model, call)
                decode_us = round((time.perf_counter() - admitted) * 1e6)
                reply = partial(self._reply, model, read, decode_us)
                return self._batcher.run(model, read.inputs, read.call, reply)
        except Exception as error:
            self._statistics.count_refusal(model, time.perf_counter() - started, error)
            raise

    def _reply(self, model: Model, read: Read, decode_us: int, answer: Answer) -> Any:
        timed = Timed(answer.outputs, decode_us, answer.wait_us, answer.inference_us)
        self._statistics.count_answer(model, read.inputs, *timed)
        return read.write(timed)
