"""Shared by the tests of serving: a caller that can cancel, and a model whose runs block until they are released."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tests.conftest
from evalmode.artifact.tensors import INPUT, Tensors
from evalmode.limits import Limits
from evalmode.runtime.model import ImageClassifier
from serving.engine.decodes import Decodes
from serving.engine.executor import Executor
from serving.engine.memory import choose_decode_bytes
from serving.engine.scheduler import Scheduler
from serving.engine.shared_limits import Alone, SharedLimit, SharedSlots
from serving.services.access import Access
from serving.services.backend import Backend
from serving.services.classifier import Classifier
from serving.services.inference import Inference, Unparsed, Work
from serving.services.models import Models
from serving.services.open_inference import OpenInference
from serving.services.source import Source
from serving.services.statistics import Statistics
from serving.transports.grpcio import GrpcioServer

if TYPE_CHECKING:
    from serving.transports.native import NativeServer

WAIT_S = 30  # deadline of every wait: a test that reaches it hangs


def spawn(function: Callable[..., Any], *arguments: object) -> Future[Any]:
    """Call a function in a daemon thread, which cannot keep the test process from ending."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def wait_until(holds: Callable[[], object]) -> None:
    """Poll a condition until it is true, for at most ``WAIT_S`` seconds."""
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until, "the condition is still false"
        time.sleep(0.005)


def refresh(models: Models) -> None:
    """Bring the loaded models up to date with the repository, and return once that is done."""
    models._look()
    models._wait_until(lambda: not models._on_trial)


class Caller:
    """The caller of a request, which can cancel it."""

    def __init__(self, remaining_s: float = 3600.0) -> None:
        self.remaining_s = remaining_s
        self.arrived = time.monotonic()
        self.is_cancelled = False
        self.works: list[Any] = []  # works or jobs, with a method ``withdraw``

    @property
    def deadline(self) -> float:
        return time.monotonic() + self.remaining_s if self.remaining_s else 0.0

    def cancelled(self) -> bool:
        return self.is_cancelled

    def cancel(self) -> None:
        """Cancel the call and withdraw its requests, as transports do."""
        self.is_cancelled = True
        for work in self.works:
            work.withdraw()


class Direct:
    """A service without a transport.

    Attributes:
        service: The service.
        inference: Answers the requests of the service.
    """

    def __init__(self, service: Any, inference: Inference) -> None:
        self.service = service
        self.inference = inference

    def begin(self, request: Any, call: Caller | None = None, size_bytes: int = 0) -> Future[Any]:
        """Begin to answer a request; return a future of the reply."""
        call, future = call or Caller(), Future[Any]()

        def done(outcome: Any) -> None:
            (future.set_exception if isinstance(outcome, Exception) else future.set_result)(outcome)

        def later(seconds: float, function: Callable[[], object]) -> None:
            timer = threading.Timer(seconds, function)
            timer.daemon = True
            timer.start()

        message = Unparsed(lambda: request, size_bytes, lambda reply: reply)
        call.works.append(Work(self.inference, self.service, message, call, done, later))
        return future

    def ask(self, request: Any, call: Caller | None = None) -> Any:
        """The reply to a request."""
        return self.begin(request, call).result(WAIT_S)


class BlockedModel:
    """A model whose runs put their batch into ``entered`` and block until they are released.

    Attributes:
        entered: The batches, in the order in which their runs began.
        row_s: Expected time per row, in seconds.
        alone: For each run, whether no other request was in flight.
    """

    def __init__(self, model: ImageClassifier) -> None:
        self.entered: queue.Queue[np.ndarray] = queue.Queue()
        self.alone: list[bool] = []
        self.name, self.version, self.digest = model.name, model.version, model.digest
        self.manifest, self.provider, self.rank = model.manifest, model.provider, model.rank
        self.batch_invariant, self.max_batch = model.batch_invariant, model.max_batch
        self.inputs, self.outputs, self.optional = model.inputs, model.outputs, model.optional
        self.max_slots = 0
        self.row_s = 0.0
        self._model = model
        self._permits = threading.Semaphore(0)

    def as_classifier(self) -> BlockedModel:
        return self

    def expect_s(self, rows: int) -> float:
        return rows * self.row_s

    def run(self, inputs: Tensors, optional: tuple[str, ...] = (), alone: bool = False) -> Tensors:
        self.alone.append(alone)
        self.entered.put(inputs[INPUT])
        if not self._permits.acquire(timeout=WAIT_S):
            raise TimeoutError("the run was not released")
        return self._model.run(inputs, optional, alone)

    def next_batch(self) -> np.ndarray:
        """Wait for the next run to begin, and return its batch."""
        return self.entered.get(timeout=WAIT_S)

    def release(self, runs: int = 1) -> None:
        self._permits.release(runs)


_MADE: list[Executor] = []


@pytest.fixture(autouse=True)
def end_threads() -> Iterator[None]:
    """Close the executors that a test made with ``make_executor``."""
    yield
    while _MADE:
        _MADE.pop().close()


def make_executor(slots: int = 1, limits: Limits | None = None, decode_bytes: int = 0, **options: Any) -> Executor:
    """Make an executor that is closed after the test."""
    limits = limits or Limits()
    decodes = Decodes(SharedSlots(slots, "large_slots", Alone), choose_decode_bytes(decode_bytes).limit_bytes)
    in_flight = SharedLimit(slots + limits.max_queue, Alone("in_flight"))
    _MADE.append(
        executor := Executor(
            Scheduler(SharedSlots(slots, "slots", Alone), limits.max_batch, decodes, in_flight), **options
        )
    )
    return executor


def classify_by(*models: Any, executor: Executor | None = None, limits: Limits | None = None) -> Direct:
    """The service of ``evalmode.v1`` for loaded models, without a transport."""
    limits = limits or Limits()
    executor = executor or make_executor(1, limits)
    executor.serve(models)
    served = Models({model.name: (model,) for model in models}, Source(Path()))
    return Direct(
        Classifier(served, limits, executor.decodes), Inference(executor, Statistics(), limits.default_deadline)
    )


def make_backend(classifier: Direct, limits: Limits, access: Access | None = None) -> Backend:
    """A backend that serves the models of the classifier by both protocols."""
    inference, service = classifier.inference, classifier.service
    return Backend(service, OpenInference(service._models, inference, limits), inference, limits, access)


def listen(
    classifier: Direct, limits: Limits | None = None, access: Access | None = None
) -> GrpcioServer | NativeServer:
    """Start a server in this process on a free port, which serves the models of the classifier by both protocols."""
    backend = make_backend(classifier, limits or Limits(), access)
    if tests.conftest.transport == "native":
        from serving.transports.native import NativeServer  # optional

        server: GrpcioServer | NativeServer = NativeServer(backend, "127.0.0.1:0")
    else:
        server = GrpcioServer(backend, "127.0.0.1:0")
    server.start()
    return server
