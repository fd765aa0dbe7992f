"""The client: typed answers, errors with code and reason, a deadline for every call, and a small import."""

from __future__ import annotations

import array
import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import grpc
import numpy as np
import pytest
from PIL import Image

from evalmode.cli.serve import serve
from evalmode.client import DEFAULT_ADDRESS, AsyncClient, CallFailed, Client
from evalmode.errors import EvalmodeError, QueueFull
from evalmode.limits import Limits
from evalmode.prediction import Prediction, Score
from evalmode.runtime.model import ImageClassifier
from evalmode.wire import classifier_pb2 as wire
from serving.services.status import RETRY_AFTER_S
from tests.conftest import COLOURS, Server, encode, plain
from tests.serving.conftest import WAIT_S, BlockedModel, classify_by, listen, spawn

HEAVY = ["numpy", "PIL", "onnx", "onnxruntime", "torch", "training"]


class Awaited:
    """An ``AsyncClient`` with the interface of ``Client``, so that the same tests cover both."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()

        async def connect() -> AsyncClient:
            return await AsyncClient(*arguments, **options).__aenter__()

        self._client = self._loop.run_until_complete(connect())

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *arguments, **options: self._loop.run_until_complete(
            getattr(self._client, name)(*arguments, **options)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._loop.run_until_complete(self._client.__aexit__(*error))
        self._loop.close()


both = pytest.mark.parametrize("connect", [Client, Awaited], ids=["sync", "asyncio"])


@pytest.fixture(params=[Client, Awaited], ids=["sync", "asyncio"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    with request.param(server.address) as connected:
        yield connected


class TestAnswers:
    def test_are_immutable_values(self, client: Client) -> None:
        answer = client.predict(encode(plain((255, 0, 0))))
        assert isinstance(answer, Prediction)
        assert [type(score) for score in answer.scores] == [Score] * 3
        assert [(score.label, score.index) for score in answer.scores] == [("red", 0), ("green", 1), ("blue", 2)]
        assert sum(score.probability for score in answer.scores) == pytest.approx(1)
        assert (answer.label, answer.probability) == (answer.scores[0].label, answer.scores[0].probability)
        with pytest.raises(FrozenInstanceError):
            answer.model = "other"  # type: ignore[misc]

    def test_are_the_same_for_bytes_and_paths(self, client: Client, tmp_path: Path) -> None:
        image = encode(plain((9, 200, 3), (40, 30)))
        path = tmp_path / "green.png"
        path.write_bytes(image)
        assert client.predict(image).scores == client.predict(path).scores == client.predict(str(path)).scores

    def test_have_the_requested_number_of_labels(self, client: Client) -> None:
        assert [len(client.predict(encode(plain("red")), top_k=top_k).scores) for top_k in (0, 1, 2, 9)] == [3, 1, 2, 3]
        pixels = np.zeros((4, 4, 3), np.uint8)
        assert [len(client.predict_pixels(pixels, top_k=top_k).scores) for top_k in (1, 2)] == [1, 2]

    @pytest.mark.parametrize("top_k", [-1, 2**32])
    def test_are_refused_for_a_number_of_labels_outside_its_range(self, client: Client, top_k: int) -> None:
        with pytest.raises(EvalmodeError, match=rf"top_k {top_k} is outside 0\.\.4294967295"):
            client.predict(encode(plain("red")), top_k=top_k)
        with pytest.raises(EvalmodeError, match="is outside"):
            client.predict_pixels(np.zeros((4, 4, 3), np.uint8), top_k=top_k)

    def test_of_get_model_have_every_field(self, client: Client) -> None:
        model = client.get_model("colours", "1")
        assert (model.model, model.version, model.provider) == ("colours", "1", "CPU")
        assert model.digest == client.predict(encode(plain("red"))).digest
        assert tuple(model.labels) == COLOURS
        assert (model.pixels.height, model.pixels.width, model.pixels.channels) == (4, 4, 3)
        # The server of the fixture has a shorter lame_duck.
        assert model.limits == {**asdict(Limits()), "lame_duck": 0}
        assert {name: json.loads(value) for name, value in model.properties.items()} == {"network": "colours"}


class TestPixels:
    @pytest.mark.parametrize(
        "pixels",
        [
            np.full((4, 4, 3), (0, 0, 99), np.uint8),
            np.full((4, 8, 3), (0, 0, 99), np.uint8)[:, ::2],
            np.full((4, 4, 3), (99, 0, 0), np.uint8)[:, :, ::-1],
            np.full((3, 4, 4), 0, np.uint8).transpose(1, 2, 0) + np.array((0, 0, 99), np.uint8),
            memoryview(bytes((0, 0, 99) * 16)).cast("B", (4, 4, 3)),
        ],
        ids=["contiguous", "strided", "reversed", "transposed", "memoryview"],
    )
    def test_of_any_memory_layout_are_sent_in_order(self, client: Client, pixels: object) -> None:
        assert client.predict_pixels(pixels).label == "blue"

    def test_have_the_scores_of_the_same_image(self, client: Client) -> None:
        noise = np.random.default_rng(4).integers(0, 256, (4, 4, 3), np.uint8)
        assert client.predict_pixels(noise).scores == client.predict(encode(Image.fromarray(noise))).scores

    @pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.float32, np.float64, np.int64, np.bool_])
    def test_of_another_dtype_are_rejected(self, client: Client, dtype: type) -> None:
        with pytest.raises(ValueError, match=r"expected uint8 \(height, width, channels\)"):
            client.predict_pixels(np.zeros((4, 4, 3), dtype))

    @pytest.mark.parametrize("shape", [(), (48,), (16, 3), (1, 4, 4, 3)])
    def test_of_another_number_of_axes_are_rejected(self, client: Client, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=f"pixels have {len(shape)} axes"):
            client.predict_pixels(np.zeros(shape, np.uint8))

    def test_without_a_buffer_of_three_axes_are_rejected(self, client: Client) -> None:
        with pytest.raises((TypeError, ValueError)):
            client.predict_pixels([[[0, 0, 0]]])
        with pytest.raises(ValueError, match="axes"):
            client.predict_pixels(array.array("B", bytes(48)))

    @pytest.mark.parametrize("shape", [(5, 4, 3), (4, 4, 1), (0, 0, 0)])
    def test_of_another_shape_are_rejected_by_the_server(self, client: Client, shape: tuple[int, ...]) -> None:
        with pytest.raises(CallFailed, match="the model wants 4x4x3") as caught:
            client.predict_pixels(np.zeros(shape, np.uint8))
        assert caught.value.reason == "PIXELS_MISMATCH"


class TestFailures:
    def test_have_code_reason_and_facts(self, client: Client) -> None:
        with pytest.raises(CallFailed) as caught:
            client.predict(b"not an image")
        failure = caught.value
        assert isinstance(failure, EvalmodeError)
        assert str(failure).startswith("INVALID_ARGUMENT: not an image")
        assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "IMAGE_UNREADABLE")
        assert (failure.retry, failure.retry_s) == (False, None)
        assert failure.facts == {"cause": "unidentified"}
        assert isinstance(failure.__cause__, grpc.RpcError)

    def test_of_every_method_have_code_and_reason(self, client: Client) -> None:
        calls = (
            lambda: client.predict(encode(plain("red")), model="cats"),
            lambda: client.predict_pixels(np.zeros((4, 4, 3), np.uint8), model="colours", version="9"),
            lambda: client.get_model("cats"),
            lambda: client.get_model(version="9"),
        )
        for call in calls:
            with pytest.raises(CallFailed) as caught:
                call()
            assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")

    def test_of_the_transport_have_no_reason(self, client: Client) -> None:
        with pytest.raises(CallFailed, match="larger than max") as caught:
            client.predict(bytes(33 * 2**20))
        assert (caught.value.code, caught.value.reason, caught.value.facts) == ("RESOURCE_EXHAUSTED", "", {})
        assert caught.value.retry is False

    @both
    def test_to_connect_name_the_address_and_may_be_retried(self, connect: type[Client]) -> None:
        with closing(socket.socket()) as unused:
            unused.bind(("127.0.0.1", 0))  # bound, so that no other process listens on the port
            address = f"127.0.0.1:{unused.getsockname()[1]}"
            with connect(address) as client, pytest.raises(CallFailed, match="is a server running there") as caught:
                client.predict(encode(plain("red")))
        assert str(caught.value).startswith(f"UNAVAILABLE: no answer from {address} (")
        assert "\n" not in str(caught.value)
        assert (caught.value.code, caught.value.reason, caught.value.retry) == ("UNAVAILABLE", "", True)
        assert caught.value.retry_s == 0.0

    def test_to_read_a_file_are_errors_of_the_system(self, client: Client, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            client.predict(tmp_path / "absent.png")


@both
@pytest.mark.parametrize("method", ["predict", "predict_pixels", "get_model"])
def test_every_call_has_a_deadline(method: str, connect: type[Client]) -> None:
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with connect(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3) as client:
            arguments: dict[str, list[Any]] = {
                "predict": [b"image"],
                "predict_pixels": [np.zeros((4, 4, 3), np.uint8)],
                "get_model": [],
            }
            with pytest.raises(CallFailed) as caught:
                getattr(client, method)(*arguments[method])
    assert (caught.value.code, caught.value.retry) == ("DEADLINE_EXCEEDED", False)


@both
def test_each_client_has_a_connection_of_its_own(connect: type[Client]) -> None:
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(WAIT_S)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with connect(address, timeout_s=0.3) as first, connect(address, timeout_s=0.3) as second:
            for client in (first, second):
                with pytest.raises(CallFailed):
                    client.get_model()
            accepted = [silent.accept()[0] for _ in range(2)]
        for connection in accepted:
            connection.close()


def test_a_call_may_be_retried_if_the_server_says_so(model: ImageClassifier) -> None:
    limits, blocked = Limits(max_queue=0), BlockedModel(model)
    server = listen(classify_by(blocked, limits=limits), limits)
    with Client(f"127.0.0.1:{server.port}") as client:
        running = spawn(client.predict, encode(plain("red")))
        blocked.next_batch()
        with pytest.raises(CallFailed) as caught:
            client.predict(encode(plain("red")))
        blocked.release(2)
        assert running.result(WAIT_S).label == "red"
        assert client.predict(encode(plain("red"))).label == "red"
    server.drain(0)
    failure = caught.value
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert (failure.retry, failure.retry_s) == (True, RETRY_AFTER_S[QueueFull])
    assert failure.facts == {"limit_requests": "1"}


@contextmanager
def failing(code: grpc.StatusCode, times: int) -> Iterator[tuple[str, list[None]]]:
    """A server whose first calls of Predict fail; yields its address and an entry for each call."""
    calls: list[None] = []

    def predict(request: wire.PredictRequest, context: grpc.ServicerContext) -> wire.PredictResponse:
        calls.append(None)
        if len(calls) <= times:
            context.abort(code, "not now")
        return wire.PredictResponse(scores=[{"label": "red", "probability": 1}])

    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        handler = grpc.unary_unary_rpc_method_handler(
            predict, wire.PredictRequest.FromString, wire.PredictResponse.SerializeToString
        )
        served = grpc.method_handlers_generic_handler("evalmode.v1.Classifier", {"Predict": handler})
        server.add_generic_rpc_handlers((served,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", calls
        server.stop(0).wait()


@both
def test_a_call_is_retried_while_the_server_is_unavailable(connect: type[Client]) -> None:
    with failing(grpc.StatusCode.UNAVAILABLE, 2) as (address, calls), connect(address) as client:
        assert client.predict(b"image").label == "red"
    assert len(calls) == 3


@both
def test_a_call_is_attempted_at_most_four_times(connect: type[Client]) -> None:
    with (
        failing(grpc.StatusCode.UNAVAILABLE, 99) as (address, calls),
        connect(address) as client,
        pytest.raises(CallFailed) as caught,
    ):
        client.predict(b"image")
    assert (caught.value.code, caught.value.retry) == ("UNAVAILABLE", True)
    assert len(calls) == 4


@both
@pytest.mark.parametrize("name", ["RESOURCE_EXHAUSTED", "INTERNAL", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN"])
def test_no_other_error_is_retried(name: str, connect: type[Client]) -> None:
    with (
        failing(grpc.StatusCode[name], 1) as (address, calls),
        connect(address) as client,
        pytest.raises(CallFailed) as caught,
    ):
        client.predict(b"image")
    assert caught.value.code == name
    assert len(calls) == 1


def test_asyncio_reads_files_in_another_thread(server: Server, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(encode(plain("red")))
    readers, read = [], Path.read_bytes

    def watch(path: Path) -> bytes:
        readers.append(threading.current_thread())
        return read(path)

    async def predict() -> str:
        async with AsyncClient(server.address, timeout_s=WAIT_S) as client:
            return (await client.predict(tmp_path / "red.png")).label

    with patch.object(Path, "read_bytes", watch):
        assert asyncio.run(predict()) == "red"
    assert readers
    assert threading.current_thread() not in readers


def test_asyncio_sends_concurrent_requests(server: Server) -> None:
    async def predict() -> list[str]:
        async with AsyncClient(server.address, timeout_s=WAIT_S) as client:
            answers = await asyncio.gather(*(client.predict(encode(plain(c))) for c in ["red", "lime", "blue"] * 20))
        return [answer.label for answer in answers]

    assert asyncio.run(predict()) == ["red", "green", "blue"] * 20


def test_a_client_can_be_shared_between_threads(server: Server) -> None:
    colours = ["red", "lime", "blue"] * 10
    with Client(server.address) as client, ThreadPoolExecutor(10) as threads:
        answers = threads.map(lambda colour: client.predict(encode(plain(colour))).label, colours)
        assert list(answers) == ["red", "green", "blue"] * 10


def test_the_default_address_is_the_default_of_the_server() -> None:
    defaults = {option.name: option.default for option in serve.params}
    assert f"{defaults['host']}:{defaults['port']}" == DEFAULT_ADDRESS


@pytest.mark.parametrize(
    "module", ["serving", "evalmode.client", "evalmode.errors", "evalmode.limits", "evalmode.wire"]
)
def test_modules_of_the_bare_install_import_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY})))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
    assert loaded.stderr == ""


def test_the_client_imports_only_grpc_protobuf_and_the_standard_library() -> None:
    code = (
        "import sys, grpc, grpc.aio, google.rpc.error_details_pb2, google.rpc.status_pb2\n"
        "before = set(sys.modules)\n"
        "import evalmode.client\n"
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(added - set(sys.stdlib_module_names)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(loaded.stdout.split()) <= {"evalmode", "google", "grpc"}


def test_the_client_and_a_loaded_model_return_the_same_type(client: Client, model: ImageClassifier) -> None:
    image = encode(plain("red", (9, 9)))
    local, remote = model.predict(image), client.predict(image)
    assert type(local) is type(remote)
    assert (local.scores, local.digest) == (remote.scores, remote.digest)
