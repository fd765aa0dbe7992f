"""What the serving tests share: a caller that goes away on demand and a model that runs when it is let go."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tests.conftest
from serving.batching import Batcher
from serving.certificate import INPUT, Tensors
from serving.limits import Limits
from serving.model import Model, load_model
from serving.services.classifier import Classifier
from serving.services.inference import Inference
from serving.services.models import Models
from serving.services.open_inference import OpenInference
from serving.services.statistics import Statistics
from serving.transports.grpcio import GrpcioServer
from tests.conftest import colour_artifact

if TYPE_CHECKING:
    from serving.transports.native import NativeServer

WAIT_S = 30  # no test takes this long: where it passes, something hangs


# What pygrpc-native 0.5.0 cannot do, by the words of the marker ``native_lacks``.
NATIVE_LACKS = {
    "early refusal": "pygrpc-native holds a whole message before it can be refused",
    "inflation": "pygrpc-native inflates messages itself, whole",
    "message timeout": "pygrpc-native waits for the message of Predict and ModelInfer without an end",
    "connections": "pygrpc-native hands what it does not serve itself on over one connection",
    "leaving": "pygrpc-native refuses what comes while it drains without a reason",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what a transport cannot do; leave out what needs a GPU, unless it was asked for (``-m gpu``)."""
    if tests.conftest.transport == "native":
        for item in items:
            for marker in item.iter_markers("native_lacks"):
                item.add_marker(pytest.mark.skip(reason=NATIVE_LACKS[marker.args[0]]))
    if config.option.markexpr:
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]


@pytest.fixture(scope="session")
def colour_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour artifact as a file outside any repository."""
    path = tmp_path_factory.mktemp("artifact") / "colours.onnx"
    path.write_bytes(colour_artifact())
    return path


@pytest.fixture(scope="session")
def model(colour_file: Path) -> Model:
    """The colour artifact, loaded as colours/1."""
    return load_model(colour_file, name="colours", version="1")


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
    """A request's caller. ``waits`` is set once its request stands in the queue."""

    def __init__(self, remaining_s: float = 3600.0) -> None:
        self.remaining_s = remaining_s
        self.gone = False
        self.waits = threading.Event()
        self.wakes: list[Callable[[], object]] = []

    def time_remaining_s(self) -> float:
        return self.remaining_s

    def waited_s(self) -> float:
        return 0.0

    def cancelled(self) -> bool:
        return self.gone

    def wake_on_cancel(self, wake: Callable[[], object]) -> None:
        self.wakes.append(wake)
        if self.gone:
            wake()
        self.waits.set()

    def cancel(self) -> None:
        self.gone = True
        for wake in self.wakes:
            wake()


class Held:
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

    def let_go(self, runs: int = 1) -> None:
        self._permits.release(runs)


def classify_by(*models: Any, batcher: Batcher | None = None, limits: Limits | None = None) -> Classifier:
    """The service, for models that are loaded already."""
    limits = limits or Limits()
    served = Models({model.name: (model,) for model in models}, Path())
    return Classifier(served, Inference(batcher or Batcher(1, limits), Statistics()), limits)


def listen(classifier: Classifier, batcher: Batcher, limits: Limits | None = None) -> GrpcioServer | NativeServer:
    """A server in this process on a free port, started; both protocols answer with the classifier's models."""
    limits, statistics = limits or Limits(), Statistics()
    theirs = OpenInference(classifier._models, Inference(batcher, statistics), batcher.slots, limits, statistics)
    if tests.conftest.transport == "native":
        from serving.transports.native import NativeServer  # optional

        server: GrpcioServer | NativeServer = NativeServer(
            classifier, theirs, batcher, statistics, "127.0.0.1", 0, limits
        )
    else:
        server = GrpcioServer(classifier, theirs, batcher, statistics, "127.0.0.1:0", limits)
    server.start()
    return server
