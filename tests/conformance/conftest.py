"""Shared by the conformance suite: the tested server, valid requests for its models, and the result file.

    pytest tests/conformance --address HOST:PORT --model NAME [--result FILE]

Without --address it tests a server of evalmode, with an image classifier and with networks of tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from benchmarks.record import take_stamp
from evalmode.artifact.publishing import publish
from evalmode.wire import open_inference_pb2 as wire
from evalmode.wire import open_inference_pb2_grpc as wire_grpc
from tests.conformance.specification import NUMPY, TYPED
from tests.conftest import Server, colour_artifact, serving
from tests.serving.services.test_open_inference import tensor_artifact

WAIT_S = 30
TENSOR_NETWORKS = {"sum": "float32", "half": "float16", "either": "bool"}  # networks of tensors -> their dtype
MANY = 256  # concurrent requests; more than any server accepts


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model_name" in metafunc.fixturenames:
        given = metafunc.config.getoption("--model")
        metafunc.parametrize("model_name", [given] if given else ["colours", *TENSOR_NETWORKS], scope="session")


RULES = pytest.StashKey[dict[str, str]]()
SERVER = pytest.StashKey[str]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := session.config.getoption("--result"):
        stash = session.config.stash
        result = {"server": stash[SERVER], "stamp": asdict(take_stamp()), "rules": stash[RULES]}
        path.write_text(json.dumps(result, indent=1) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (report.when == "call" and not report.skipped) or report.failed:  # skipped tests have no outcome
        rule = (item.function.__doc__ or item.name).strip()
        rules = item.config.stash.setdefault(RULES, {})
        if call.excinfo is not None:
            rules[rule] = call.excinfo.exconly().splitlines()[0]
        rules.setdefault(rule, "passed")  # a rule passes if it passes with every model
    return report


@pytest.fixture(scope="session")
def address(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if given := pytestconfig.getoption("--address"):
        yield given
        return
    repository = tmp_path_factory.mktemp("models")
    publish(repository, "colours", colour_artifact())
    for name, dtype in TENSOR_NETWORKS.items():
        publish(repository, name, tensor_artifact(dtype))
    with serving(repository) as running:
        yield running.address


@pytest.fixture(scope="session")
def busy(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of evalmode that takes a second per request and has no queue; to load its model takes seconds."""
    if pytestconfig.getoption("--address"):
        pytest.skip("needs a server of evalmode with a slow model")
    repository = tmp_path_factory.mktemp("slow")
    publish(repository, "colours", colour_artifact(slow_steps=4000))
    with serving(repository, "--allow-uncertified", "--max-queue", 0) as running:
        yield running


@pytest.fixture
def stopped(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[Server]:
    """A server of evalmode that answers for an hour after SIGTERM."""
    if pytestconfig.getoption("--address"):
        pytest.skip("needs a server of evalmode that may be stopped")
    publish(tmp_path, "colours", colour_artifact())
    with serving(tmp_path, "--lame-duck", 3600) as running:
        yield running


@pytest.fixture(scope="session")
def stub(address: str, pytestconfig: pytest.Config) -> Iterator[wire_grpc.GRPCInferenceServiceStub]:
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=unlimited) as channel:
        stub = wire_grpc.GRPCInferenceServiceStub(channel)
        metadata = stub.ServerMetadata(wire.ServerMetadataRequest(), timeout=WAIT_S)
        pytestconfig.stash[SERVER] = f"{metadata.name} {metadata.version}"
        yield stub


@dataclass
class Target:
    """A model of the tested server, and requests that it must answer."""

    stub: wire_grpc.GRPCInferenceServiceStub
    metadata: wire.ModelMetadataResponse

    def arrays(self, batch: int = 1) -> dict[str, np.ndarray[Any, Any]]:
        """Valid inputs of zeros and ones; dynamic dimensions are ``batch``."""
        drawn = {}
        for number, tensor in enumerate(self.metadata.inputs):
            shape = [batch if side == -1 else side for side in tensor.shape]
            values = (np.arange(math.prod(shape)) + number) % 2
            drawn[tensor.name] = values.reshape(shape).astype(NUMPY[tensor.datatype])
        return drawn

    def request(self, batch: int = 1, typed: bool = False, **fields: Any) -> wire.ModelInferRequest:
        """A valid request; ``fields`` replace some of its fields."""
        request = wire.ModelInferRequest(model_name=self.metadata.name)
        for tensor in self.metadata.inputs:
            array = self.arrays(batch)[tensor.name]
            sent = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
            if typed and not TYPED[tensor.datatype]:
                pytest.skip(f"{tensor.datatype} has no typed contents")
            if typed:
                getattr(sent.contents, TYPED[tensor.datatype]).extend(array.ravel().tolist())
            else:
                request.raw_input_contents.append(array.tobytes())
        for name, value in fields.items():
            setattr(request, name, value)
        return request

    def infer(self, request: wire.ModelInferRequest) -> wire.ModelInferResponse:
        """Send a request and return the reply."""
        return self.stub.ModelInfer(request, timeout=WAIT_S)


@pytest.fixture(scope="session")
def target(stub: wire_grpc.GRPCInferenceServiceStub, model_name: str) -> Target:
    return Target(stub, stub.ModelMetadata(wire.ModelMetadataRequest(name=model_name), timeout=WAIT_S))


def code_of(call: Callable[[], object]) -> str:
    """The status that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def read_outputs(reply: wire.ModelInferResponse) -> dict[str, list[Any]]:
    """The values of every output, from raw or typed contents."""
    found = {}
    for place, output in enumerate(reply.outputs):
        if reply.raw_output_contents:
            values = np.frombuffer(reply.raw_output_contents[place], NUMPY[output.datatype])
        else:
            values = np.array(getattr(output.contents, TYPED[output.datatype]), NUMPY[output.datatype])
        found[output.name] = values.tolist()
    return found
