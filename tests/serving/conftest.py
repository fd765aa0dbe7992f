"""What the serving tests share: a caller that goes away on demand and a model that runs when it is let go."""

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
from evalmode.runtime.model import Model
from serving.engine.batching import Batcher
from serving.engine.decoding import DecodeBudget
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

WAIT_S = 30  # no test takes this long: where it passes, something hangs


def spawn(function: Callable[..., Any], *arguments: object) -> Future[Any]:
    """Call in a thread that does not hold up the end of the tests where it hangs."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def wait_until(holds: Callable[[], object]) -> None:
    """Look again and again until something holds."""
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


class Caller:
    """A request's caller, who may cancel."""

    def __init__(self, remaining_s: float = 3600.0) -> None:
        self.remaining_s = remaining_s
        self.is_cancelled = False
        self.works: list[Work] = []

    def time_remaining_s(self) -> float:
        return self.remaining_s

    def waited_s(self) -> float:
        return 0.0

    def cancelled(self) -> bool:
        return self.is_cancelled

    def cancel(self) -> None:
        """Cancel, and let the request be withdrawn where it waits, as transports do."""
        self.is_cancelled = True
        for work in self.works:
            work.withdraw()


class Direct:
    """A service without a transport.

    Attributes:
        service: It.
        inference: What answers its requests.
    """

    def __init__(self, service: Any, inference: Inference) -> None:
        self.service = service
        self.inference = inference

    def begin(self, request: Any, call: Caller | None = None, size_bytes: int = 0) -> Future[Any]:
        """Begin to answer a request: a future of its reply."""
        call, future = call or Caller(), Future()

        def done(outcome: Any) -> None:
            (future.set_exception if isinstance(outcome, Exception) else future.set_result)(outcome)

        def later(seconds: float, function: Callable[[], object]) -> None:
            timer = threading.Timer(seconds, function)
            timer.daemon = True
            timer.start()

        message = Unparsed(lambda: request, size_bytes)
        call.works.append(Work(self.inference, self.service, message, call, done, later))
        return future

    def ask(self, request: Any, call: Caller | None = None) -> Any:
        """The reply to a request."""
        return self.begin(request, call).result(WAIT_S)


def count_turns(lane: Any) -> int:
    """How much work waits in a lane of a decode budget."""
    return sum(turn.work is not None for turn in tuple(lane._line))


class BlockedModel:
    """A model whose every run shows its batch in ``entered`` and then waits to be let go; ``row_s`` is its pace."""

    def __init__(self, model: Model) -> None:
        self.entered: queue.Queue[np.ndarray] = queue.Queue()
        self.name, self.version, self.digest = model.name, model.version, model.digest
        self.manifest, self.provider, self.rank = model.manifest, model.provider, model.rank
        self.batch_invariant, self.max_batch = model.batch_invariant, model.max_batch
        self.inputs, self.outputs = model.inputs, model.outputs
        self.row_s = 0.0
        self._model = model
        self._permits = threading.Semaphore(0)

    def as_classifier(self) -> BlockedModel:
        return self

    def expect_s(self, rows: int) -> float:
        return rows * self.row_s

    def run(self, inputs: Tensors) -> Tensors:
        self.entered.put(inputs[INPUT])
        if not self._permits.acquire(timeout=WAIT_S):
            raise TimeoutError("nobody let this run go")
        return self._model.run(inputs)

    def next_batch(self) -> np.ndarray:
        """The next batch that entered, waiting for it."""
        return self.entered.get(timeout=WAIT_S)

    def release(self, runs: int = 1) -> None:
        self._permits.release(runs)


_MADE: list[Batcher | DecodeBudget] = []


@pytest.fixture(autouse=True)
def end_threads() -> Iterator[None]:
    """End the threads of batchers and budgets that a test has made by ``make_batcher`` and ``make_budget``."""
    yield
    while _MADE:
        _MADE.pop().close()


def make_batcher(slots: int = 1, limits: Limits | None = None, **options: Any) -> Batcher:
    """A batcher that ends with the test."""
    _MADE.append(batcher := Batcher(slots, limits or Limits(), **options))
    return batcher


def make_budget(slots: int = 2, max_bytes: int = 0) -> DecodeBudget:
    """A budget that ends with the test."""
    _MADE.append(budget := DecodeBudget(slots, max_bytes))
    return budget


def classify_by(*models: Any, batcher: Batcher | None = None, limits: Limits | None = None) -> Direct:
    """The service of ``evalmode.v1``, for models that are loaded already."""
    limits, budget = limits or Limits(), make_budget()
    served = Models({model.name: (model,) for model in models}, Source(Path()))
    inference = Inference(batcher or make_batcher(1, limits), budget, Statistics())
    return Direct(Classifier(served, limits, budget), inference)


def make_backend(classifier: Direct, limits: Limits, access: Access | None = None) -> Backend:
    """Both protocols, answered with the classifier's models."""
    inference, service = classifier.inference, classifier.service
    return Backend(service, OpenInference(service._models, inference, limits), inference, limits, access)


def listen(
    classifier: Direct, limits: Limits | None = None, access: Access | None = None
) -> GrpcioServer | NativeServer:
    """A server in this process on a free port, started; both protocols answer with the classifier's models."""
    backend = make_backend(classifier, limits or Limits(), access)
    if tests.conftest.transport == "native":
        from serving.transports.native import NativeServer  # optional

        server: GrpcioServer | NativeServer = NativeServer(backend, "127.0.0.1:0")
    else:
        server = GrpcioServer(backend, "127.0.0.1:0")
    server.start()
    return server
