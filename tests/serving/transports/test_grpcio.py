"""The wire: statuses with their reasons, health, reflection, signals and drains, on real sockets."""

from __future__ import annotations

import gc
import logging
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from PIL import Image

import tests.conftest
from benchmarks.http2 import (
    CHECK,
    INFER,
    PREDICT,
    STREAM_INFER,
    WATCH,
    WINDOW_UPDATE,
    Connection,
    Ended,
    encode_call,
    frame,
    message,
)
from evalmode.artifact.publishing import publish
from evalmode.artifact.tensors import Tensors
from evalmode.client import Client
from evalmode.errors import AddressUnavailable, RequestError
from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from evalmode.runtime.model import ImageClassifier, Model
from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import classifier_pb2_grpc as wire_grpc
from evalmode.wire import open_inference_pb2 as inference
from evalmode.wire import open_inference_pb2_grpc as inference_grpc
from serving.engine.call import Call
from serving.services.access import Access, Tokens
from serving.services.classifier import Classifier
from serving.services.inference import Inference
from serving.services.models import Models
from serving.services.source import Source
from serving.services.statistics import Statistics
from serving.services.status import CODES, RETRY_AFTER_S, reason_of
from serving.transports import handlers, outcomes
from serving.transports.calls import RECEIVING, RUNNING, SENDING
from serving.transports.grpcio import CONTROL_THREADS, GrpcioServer
from tests.conftest import Server, colour_artifact, encode, plain, serving
from tests.serving.conftest import (
    WAIT_S,
    BlockedModel,
    Direct,
    classify_by,
    listen,
    make_backend,
    make_executor,
    spawn,
    wait_until,
)

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = ["evalmode.v1.Classifier", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]
NAMES += ["grpc.reflection.v1alpha.ServerReflection", "inference.GRPCInferenceService"]
RED = wire.PredictRequest(image=encode(plain("red")))
TOKEN = "0123456789abcdef"
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"),)


@contextmanager
def connected(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with connected(server.address) as opened:
        yield opened


@dataclass
class Refusal:
    """The status of a failed call and its details, as a client receives them."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    fields: list[str]
    retry: error_details_pb2.RetryInfo | None
    id: str


def read_error(error: grpc.RpcError) -> Refusal:
    info, wrong, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None
    request = error_details_pb2.RequestInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert (status.code, status.message) == (error.code().value[0], error.details())
            for detail in status.details:
                if not (detail.Unpack(info) or detail.Unpack(wrong) or detail.Unpack(request)):
                    retry = error_details_pb2.RetryInfo()
                    assert detail.Unpack(retry)
    fields = [violation.field for violation in wrong.field_violations]
    return Refusal(error.code(), error.details(), info, fields, retry, request.request_id)


def refused(call: Callable[[], object]) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return read_error(caught.value)


def check_health(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=WAIT_S).status


def watch_health(channel: grpc.Channel, service: str = "") -> grpc.Call:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)


def reflect(channel: grpc.Channel, version: str, requests: Iterator[reflection_pb2.ServerReflectionRequest]):
    """Open a reflection stream by the path of its version, as tools do."""
    return channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(requests, timeout=WAIT_S)


class TestPredict:
    def test_answers_an_image(self, server: Server) -> None:
        with Client(server.address) as client:
            answer = client.predict(
                encode(plain((0, 0, 255), (640, 480)), "JPEG"), model="colours", version="1", top_k=2
            )
        assert [score.label for score in answer.scores] == ["blue", "red"]
        assert (answer.label, answer.model, answer.version) == ("blue", "colours", "1")
        assert answer.digest.startswith("sha256:")
        assert answer.decode_us > 0
        assert answer.inference_us > 0

    def test_answers_pixels(self, server: Server) -> None:
        with Client(server.address) as client:
            assert client.predict_pixels(np.full((4, 4, 3), (0, 200, 0), np.uint8)).label == "green"

    def test_has_the_same_bits_as_the_model_in_this_process(self, server: Server, model: ImageClassifier) -> None:
        with Client(server.address) as client:
            for seed in range(5):
                noise = np.random.default_rng(seed).integers(0, 256, (50, 37, 3), np.uint8)
                image = encode(Image.fromarray(noise), "JPEG")
                assert client.predict(image).scores == model.predict(image).scores

    def test_answers_many_clients_at_the_same_time(self, server: Server) -> None:
        colours = ["red", "lime", "blue"] * 40
        with Client(server.address, timeout_s=WAIT_S) as client, ThreadPoolExecutor(24) as threads:
            answers = threads.map(lambda colour: client.predict(encode(plain(colour))).label, colours)
            assert list(answers) == ["red", "green", "blue"] * 40


class TestRefusals:
    """Every refusal that a client can cause, with its code, reason, domain and facts."""

    @pytest.mark.parametrize(
        ("request_", "code", "reason", "facts"),
        [
            ({"image": b""}, "INVALID_ARGUMENT", "IMAGE_EMPTY", {}),
            (
                {"image": bytes(10 * 2**20 + 1)},
                "INVALID_ARGUMENT",
                "IMAGE_TOO_LARGE",
                {"size_bytes": "10485761", "limit_bytes": "10485760"},
            ),
            (
                {"image": encode(plain(0, (8000, 6251), "1"))},
                "INVALID_ARGUMENT",
                "IMAGE_TOO_MANY_PIXELS",
                {"pixels": "50008000", "limit_pixels": "50000000"},
            ),
            (
                {"image": encode(plain("red"), "GIF")},
                "INVALID_ARGUMENT",
                "IMAGE_FORMAT_NOT_ALLOWED",
                {"format": "GIF", "allowed": "JPEG, PNG, WEBP, BMP"},
            ),
            ({"image": b"not an image"}, "INVALID_ARGUMENT", "IMAGE_UNREADABLE", {"cause": "unidentified"}),
            ({"image": encode(plain("red", (64, 64)), "JPEG")[:-20]}, "INVALID_ARGUMENT", "IMAGE_UNREADABLE", None),
            ({"image": b"x"}, "INVALID_ARGUMENT", "IMAGE_UNREADABLE", None),
            (
                {"pixels": wire.Pixels(data=bytes(48), height=4, width=3, channels=4)},
                "INVALID_ARGUMENT",
                "PIXELS_MISMATCH",
                {"shape": "4x3x4", "wanted_shape": "4x4x3"},
            ),
            (
                {"pixels": wire.Pixels(data=bytes(47), height=4, width=4, channels=3)},
                "INVALID_ARGUMENT",
                "PIXELS_MISMATCH",
                {"size_bytes": "47", "wanted_bytes": "48"},
            ),
            ({}, "INVALID_ARGUMENT", "INPUT_MISSING", {}),
            (
                {"image": RED.image, "model": "cats", "version": "3"},
                "NOT_FOUND",
                "MODEL_NOT_FOUND",
                {"model": "cats/3", "served": "colours/1"},
            ),
        ],
        ids=lambda value: value if isinstance(value, str) and value.isupper() else "",
    )
    def test_have_code_reason_and_facts(
        self, channel: grpc.Channel, request_: dict, code: str, reason: str, facts: dict[str, str] | None
    ) -> None:
        stub = wire_grpc.ClassifierStub(channel)
        refusal = refused(lambda: stub.Predict(wire.PredictRequest(**request_), timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason, refusal.info.domain) == (code, reason, "evalmode")
        assert facts is None or dict(refusal.info.metadata) == facts
        assert refusal.fields == ([] if code == "NOT_FOUND" else [next(iter(request_), "input")])
        assert refusal.retry is None
        assert refusal.message

    def test_of_get_model_have_code_and_reason(self, channel: grpc.Channel) -> None:
        stub = wire_grpc.ClassifierStub(channel)
        refusal = refused(lambda: stub.GetModel(wire.GetModelRequest(version="2"), timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert refusal.message == "Request for unknown model: 'colours/2' is not found, served: colours/1"

    @pytest.mark.parametrize("name", ["cats\n\0", "кошки ☃", "x" * 20_000], ids=["control", "unicode", "long"])
    def test_of_any_model_name_arrive_complete(self, channel: grpc.Channel, name: str) -> None:
        stub = wire_grpc.ClassifierStub(channel)
        refusal = refused(lambda: stub.Predict(wire.PredictRequest(image=b"x", model=name), timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        expected = f"Request for unknown model: {name!r} is not found, served: colours/1"
        assert refusal.message == expected or refusal.message.endswith("x…")

    def test_of_a_request_over_the_limit_come_from_the_transport(self, channel: grpc.Channel) -> None:
        stub = wire_grpc.ClassifierStub(channel)
        refusal = refused(lambda: stub.Predict(wire.PredictRequest(image=bytes(32 * 2**20)), timeout=WAIT_S))
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in refusal.message
        assert refusal.retry is None

    def test_of_a_malformed_message_reveal_no_internals(self, channel: grpc.Channel) -> None:
        raw = channel.unary_unary("/evalmode.v1.Classifier/Predict")
        refusal = refused(lambda: raw(b"\xff\xff\xff", timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")
        assert refusal.message == "the message of 3 bytes cannot be parsed: send the request message of this method"

    def test_of_an_unknown_method_are_unimplemented(self, channel: grpc.Channel) -> None:
        raw = channel.unary_unary("/evalmode.v1.Classifier/Train")
        refusal = refused(lambda: raw(b"", timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("UNIMPLEMENTED", "METHOD_UNKNOWN")
        assert "'/evalmode.v1.Classifier/Train'" in refusal.message

    def test_of_an_unspecified_model_list_the_served_models(self, tmp_path: Path) -> None:
        for name in ("cats", "dogs"):
            publish(tmp_path, name, colour_artifact())
        with serving(tmp_path) as running, connected(running.address) as channel:
            stub = wire_grpc.ClassifierStub(channel)
            refusal = refused(lambda: stub.Predict(RED, timeout=WAIT_S))
            assert (refusal.code.name, refusal.info.reason) == ("INVALID_ARGUMENT", "MODEL_UNSPECIFIED")
            assert dict(refusal.info.metadata) == {"served": "cats/1, dogs/1"}
            assert refusal.fields == ["model"]
            request = wire.PredictRequest(image=RED.image, model="dogs")
            assert stub.Predict(request, timeout=WAIT_S).model == "dogs"


@dataclass
class LocalServer:
    """A server in this process on a real socket, whose model runs block until they are released."""

    blocked: BlockedModel
    slots: int = 1
    limits: Limits = field(default_factory=Limits)
    access: Access | None = None

    def __enter__(self) -> LocalServer:
        self.direct = classify_by(self.blocked, executor=make_executor(self.slots, self.limits), limits=self.limits)
        self.executor, self.statistics = self.direct.inference.executor, self.direct.inference.statistics
        self.server: Any = listen(self.direct, self.limits, self.access)
        self.address = f"127.0.0.1:{self.server.port}"
        self.channel = grpc.insecure_channel(self.address)
        self.stub = wire_grpc.ClassifierStub(self.channel)
        self._drained = False
        return self

    def __exit__(self, *_: object) -> None:
        self.blocked.release(1000)
        self.channel.close()
        if not self._drained:
            self.drain(0)

    def drain(self, grace_s: float) -> int:
        """Drain the server, at most once."""
        self._drained = True
        return self.server.drain(grace_s)

    def occupy(self) -> grpc.Future:
        """Send a request that occupies the slot."""
        future = self.stub.Predict.future(RED, timeout=WAIT_S)
        self.blocked.next_batch()
        return future

    def enqueue(self, timeout_s: float | None = WAIT_S) -> grpc.Future:
        """Send a request and wait until it is in the queue."""
        before = self.count_queued()
        future = self.stub.Predict.future(RED, timeout=timeout_s)
        wait_until(lambda: self.count_queued() > before)
        return future

    def count_queued(self) -> int:
        """The number of requests in the queue."""
        return self.executor.load().waiting

    def wait_until_refused(self, *reasons: str) -> None:
        """Wait until the queue is empty and a request was refused with one of these reasons."""
        wait_until(lambda: not self.count_queued())
        counts = self.statistics.counts
        wait_until(lambda: {reason for one in list(counts.values()) for _, reason in one.codes} & {*reasons})


@pytest.fixture
def local(model: ImageClassifier) -> Iterator[LocalServer]:
    with LocalServer(BlockedModel(model)) as running:
        yield running


class TestWaiting:
    def test_with_a_full_queue_is_refused_with_a_retry_delay(self, model: ImageClassifier) -> None:
        with LocalServer(BlockedModel(model), limits=Limits(max_queue=1)) as local:
            answers = [local.occupy(), local.enqueue()]
            refusal = refused(lambda: local.stub.Predict(RED, timeout=WAIT_S))
            assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            assert dict(refusal.info.metadata) == {"limit_requests": "2"}
            assert refusal.retry is not None
            assert refusal.retry.retry_delay.ToMilliseconds() == 100
            assert local.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S).limits["max_queue"] == 1
            local.blocked.release(3)
            assert [answer.result().scores[0].label for answer in answers] == ["red", "red"]
            assert local.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"

    def test_ends_when_the_caller_cancels_and_never_runs(self, local: LocalServer) -> None:
        running = local.occupy()
        waiting = local.enqueue()
        waiting.cancel()
        local.wait_until_refused("REQUEST_CANCELLED")
        local.blocked.release()
        assert running.result().scores[0].label == "red"
        assert local.blocked.entered.empty()
        local.occupy()  # the slot is free again

    def test_ends_when_the_process_of_the_caller_dies(self, local: LocalServer) -> None:
        running = local.occupy()
        caller = (
            "import sys; from evalmode.client import Client; Client(sys.argv[1], 60).predict(sys.stdin.buffer.read())"
        )
        with subprocess.Popen([sys.executable, "-c", caller, local.address], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(RED.image)
            process.stdin.close()
            wait_until(local.count_queued)
            process.kill()
        local.wait_until_refused("REQUEST_CANCELLED")
        local.blocked.release()
        assert running.result().scores[0].label == "red"
        assert local.blocked.entered.empty()

    def test_ends_when_the_deadline_expires_and_never_runs(self, local: LocalServer) -> None:
        running = local.occupy()
        waiting = local.enqueue(timeout_s=0.3)
        assert waiting.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # The reason depends on which side sees the deadline first: the client, which then cancels, or the server.
        local.wait_until_refused("DEADLINE_EXPIRED", "REQUEST_CANCELLED")
        local.blocked.release()
        assert running.result().scores[0].label == "red"
        assert local.blocked.entered.empty()

    def test_without_a_deadline_does_not_expire(self, local: LocalServer) -> None:
        running = local.occupy()
        waiting = local.enqueue(timeout_s=None)
        local.blocked.release(2)
        assert [answer.result(WAIT_S).scores[0].label for answer in (running, waiting)] == ["red", "red"]

    @pytest.mark.native_lacks("early refusal")
    def test_with_a_full_queue_is_refused_before_its_message_arrives(self, model: ImageClassifier) -> None:
        with LocalServer(BlockedModel(model), limits=Limits(max_queue=0)) as local, Connection(local.address) as other:
            running = local.occupy()
            other.call(encode_call(PREDICT), end=False)
            assert wait_for_end(other).status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            assert local.statistics.refused == {("RESOURCE_EXHAUSTED", "QUEUE_FULL"): 1}
            local.blocked.release()
            assert running.result().scores[0].label == "red"

    @pytest.mark.native_lacks("early refusal")
    def test_is_refused_at_once_if_the_deadline_would_expire(self, local: LocalServer) -> None:
        running = local.occupy()
        next(iter(local.executor._scheduler._served.values())).pace.note(60.0, 0)
        refusal = refused(lambda: local.stub.Predict(RED, timeout=10))
        assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        assert refusal.message.startswith("the requests in flight take longer than the deadline of this request")
        waiting = local.enqueue(timeout_s=None)
        local.blocked.release(2)
        assert [answer.result(WAIT_S).scores[0].label for answer in (running, waiting)] == ["red", "red"]

    @pytest.mark.native_lacks("early refusal")
    def test_shortly_before_the_deadline_ends_with_deadline_exceeded(self, model: ImageClassifier) -> None:
        """The deadline expires before a refusal could be read: the client must not read a refusal instead."""
        with (
            LocalServer(BlockedModel(model), limits=Limits(max_queue=0)) as local,
            patch("serving.transports.handlers.HOPELESS_S", WAIT_S),
        ):
            running = local.occupy()
            refusal = refused(lambda: local.stub.Predict(RED, timeout=WAIT_S / 2))
            assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
            local.blocked.release()
            assert running.result().scores[0].label == "red"

    @pytest.mark.native_lacks("early refusal")
    def test_with_a_full_queue_does_not_reveal_the_load_without_a_token(
        self, model: ImageClassifier, tmp_path: Path
    ) -> None:
        (tmp_path / "tokens").write_text(TOKEN)
        access = Access(Tokens(tmp_path / "tokens"), None)
        with LocalServer(BlockedModel(model), limits=Limits(max_queue=0), access=access) as local:
            running = local.stub.Predict.future(RED, timeout=WAIT_S, metadata=AUTHORIZED)
            local.blocked.next_batch()
            assert refused(lambda: local.stub.Predict(RED, timeout=WAIT_S)).info.reason == "TOKEN_INVALID"
            refusal = refused(lambda: local.stub.Predict(RED, timeout=WAIT_S, metadata=AUTHORIZED))
            assert refusal.info.reason == "QUEUE_FULL"
            local.blocked.release()
            assert running.result().scores[0].label == "red"


def wait_for_end(connection: Connection) -> Ended:
    """Wait for the next call to end on a connection of raw HTTP/2 frames."""
    ended: list[Ended] = []

    def has_ended() -> bool:
        connection.flush()
        ended.extend(connection.receive())
        return bool(ended)

    wait_until(has_ended)
    return ended[0]


class Raising(Classifier):
    """A service that raises a given error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(Models({}, Source(Path())), Limits(), make_executor().decodes)
        self._error = error

    def find(self, request: wire.PredictRequest) -> Model:
        raise self._error

    def get_model(self, request: wire.GetModelRequest, call: Call) -> wire.GetModelResponse:
        raise self._error


@contextmanager
def raising(error: Exception) -> Iterator[wire_grpc.ClassifierStub]:
    server = listen(Direct(Raising(error), Inference(make_executor(), Statistics())))
    with connected(f"127.0.0.1:{server.port}") as channel:
        yield wire_grpc.ClassifierStub(channel)
    server.drain(0)


def list_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The log records without those of asyncio, which grpcio calls for servers whose loop is closed."""
    return [record for record in caplog.records if record.name != "asyncio"]


class TestErrors:
    @pytest.mark.parametrize("error", CODES, ids=lambda error: error.__name__)
    def test_of_every_row_have_their_status(self, error: type[RequestError], caplog: pytest.LogCaptureFixture) -> None:
        with raising(error("what is wrong: wörds", size_bytes=3)) as stub:
            for call in (stub.Predict, stub.GetModel):
                refusal = refused(partial(call, request_type(call)(), timeout=WAIT_S))
                assert refusal.code.name == CODES[error]
                assert refusal.message == "what is wrong: wörds"
                assert refusal.info == error_details_pb2.ErrorInfo(
                    reason=reason_of(error), domain="evalmode", metadata={"size_bytes": "3"}
                )
                assert (refusal.retry is not None) == (error in RETRY_AFTER_S)
        assert list_records(caplog) == []  # errors of clients are not logged

    @pytest.mark.parametrize(
        "error", [ValueError("secret"), KeyError("secret"), MemoryError("secret"), OSError("secret")]
    )
    def test_of_the_server_reveal_only_an_id(self, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
        with raising(error) as stub:
            refusal = refused(lambda: stub.Predict(RED, timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason, refusal.info.domain) == ("INTERNAL", "INTERNAL", "evalmode")
        error_id = refusal.info.metadata["id"]
        assert re.fullmatch("[0-9a-f]{12}", error_id)
        assert refusal.message == f"internal error {error_id}: the server's log has the cause under this id"
        assert dict(refusal.info.metadata) == {"id": error_id}
        assert refusal.retry is None
        [record] = list_records(caplog)
        assert (record.levelname, record.getMessage()) == ("ERROR", f"internal error {error_id}")
        assert "Traceback" in caplog.text
        assert "secret" in caplog.text

    def test_of_the_server_have_different_ids(self) -> None:
        with raising(ValueError()) as stub:
            ids = {refused(lambda: stub.Predict(RED, timeout=WAIT_S)).info.metadata["id"] for _ in range(5)}
        assert len(ids) == 5

    def test_of_grpcio_are_logged_except_for_clients_that_disconnected_during_a_reply(
        self, local: LocalServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        log = logging.getLogger("grpc._cython.cygrpc")  # messages of callback_common.pyx.pxi and server.pyx.pxi
        log.error("ExecuteBatchError raised in core by servicer method [%s]", "Predict")
        log.error("Unexpected [%s] raised by servicer method [%s]", "ValueError", "Predict")
        assert [record.args for record in caplog.records] == [("ValueError", "Predict")]

    def test_of_a_failed_run_are_internal_and_the_next_request_is_answered(
        self, model: ImageClassifier, caplog: pytest.LogCaptureFixture
    ) -> None:
        class FailsOnce(BlockedModel):
            failed = False

            def run(self, inputs: Tensors, *how: Any) -> Tensors:
                if not self.failed:
                    self.failed = True
                    raise RuntimeError("out of memory at address 0x7f")
                return model.run(inputs, *how)

        with LocalServer(FailsOnce(model), limits=Limits(max_queue=0)) as local:
            refusal = refused(lambda: local.stub.Predict(RED, timeout=WAIT_S))
            assert (refusal.code.name, refusal.info.reason) == ("INTERNAL", "INTERNAL")
            assert "address" not in refusal.message
            assert local.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
        assert "out of memory at address 0x7f" in caplog.text

    def test_fit_into_the_trailers_with_many_models(self, model: ImageClassifier) -> None:
        models = {f"{number:03d}" + "m" * 100: model for number in range(200)}
        models = {name: replace(model, name=name) for name in models}
        server = listen(classify_by(*models.values()))
        with connected(f"127.0.0.1:{server.port}") as channel:
            refusal = refused(lambda: wire_grpc.ClassifierStub(channel).Predict(RED, timeout=WAIT_S))
        server.drain(0)
        assert (refusal.code.name, refusal.info.reason) == ("INVALID_ARGUMENT", "MODEL_UNSPECIFIED")


def request_type(call: grpc.UnaryUnaryMultiCallable) -> type:
    """The type of the request of a method."""
    return wire.PredictRequest if b"Predict" in call._method else wire.GetModelRequest


class TestControlCalls:
    """Calls on the control threads; native forwards all but Predict and ModelInfer to them."""

    def test_over_the_limit_are_refused_with_a_retry_delay(self, local: LocalServer) -> None:
        with patch("serving.transports.controls.MAX_CONTROLS", 0):
            refusal = refused(lambda: local.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "CALLS_FULL")
        assert refusal.retry is not None
        assert local.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S).model == "colours"

    def test_over_the_number_of_threads_wait_and_are_answered(self, local: LocalServer) -> None:
        with block_handlers(local) as slow:
            calls = [local.stub.GetModel.future(wire.GetModelRequest(), timeout=WAIT_S) for _ in range(20)]
            wait_until(lambda: slow.running == CONTROL_THREADS)
            slow.may_continue.set()
            assert {call.result().model for call in calls} == {"colours"}
            assert refused(lambda: local.stub.GetModel(wire.GetModelRequest(model="x"))).code.name == "NOT_FOUND"

    def test_give_their_place_back_after_an_error(self, local: LocalServer) -> None:
        with patch("serving.transports.controls.MAX_CONTROLS", 1):
            for _ in range(3):
                assert local.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S).model == "colours"
                refusal = refused(lambda: local.stub.GetModel(wire.GetModelRequest(model="x"), timeout=WAIT_S))
                assert refusal.info.reason == "MODEL_NOT_FOUND"
                raw = local.channel.unary_unary("/evalmode.v1.Classifier/GetModel")
                assert refused(partial(raw, b"\xff", timeout=WAIT_S)).info.reason == "MESSAGE_INVALID"

    def test_keep_their_place_after_a_cancellation_until_their_thread_is_free(self, local: LocalServer) -> None:
        with block_handlers(local) as slow, patch("serving.transports.controls.MAX_CONTROLS", 1):
            call = local.stub.GetModel.future(wire.GetModelRequest(), timeout=WAIT_S)
            wait_until(lambda: slow.running == 1)
            call.cancel()
            others = fallback(local.server)
            wait_until(lambda: not others._calls.count(RECEIVING, RUNNING, SENDING))
            refusal = refused(lambda: local.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S))
            assert refusal.info.reason == "CALLS_FULL"
            slow.may_continue.set()
            wait_until(lambda: not others._handlers._controls.running)
            assert local.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S).model == "colours"


@pytest.mark.native_lacks("early refusal")
class TestRefusedCalls:
    """Refused calls release their resources at once, since there may be many."""

    @pytest.mark.parametrize("path", [PREDICT, CHECK, "/evalmode.v1.Classifier/GetModel", "/evalmode.v1.Classifier/X"])
    @pytest.mark.parametrize("is_full", [False, True])
    def test_end_although_the_client_reads_no_message(self, model: ImageClassifier, path: str, is_full: bool) -> None:
        with (
            LocalServer(BlockedModel(model), limits=Limits(max_queue=0)) as local,
            Connection(local.address, window=0) as other,
        ):
            running = [local.occupy()] if is_full else []
            other.call(encode_call(path), message(b"\xff"))
            assert wait_for_end(other).status > 0
            wait_until(lambda: local.server._calls.count(RECEIVING, RUNNING, SENDING) == len(running))

    @pytest.mark.parametrize(
        "path", [PREDICT, STREAM_INFER, INFER, CHECK, "/evalmode.v1.Classifier/GetModel", "/evalmode.v1.Classifier/X"]
    )
    def test_free_their_message_without_the_garbage_collector(self, local: LocalServer, path: str) -> None:
        method, damaged = local.channel.stream_stream(path), b"\xff" * 2**20
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(10):
                assert refused(lambda: list(method(iter([damaged]), timeout=WAIT_S))).code.value[0] > 0
            wait_until(lambda: not local.server._calls._open)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
        assert kept < 5 * 2**20


@pytest.mark.native_lacks("connections")
class TestCallsThatWaitForTheirMessage:
    @pytest.fixture
    def local(self, model: ImageClassifier) -> Iterator[LocalServer]:
        with patch("serving.transports.receiving.MAX_RECEIVING", 3), LocalServer(BlockedModel(model)) as running:
            running.blocked.release(10)
            yield running

    def open(self, local: LocalServer, connection: Connection, path: str) -> None:
        """Open a call without a message, and wait until the server has received it."""
        before = local.server._calls.count(RECEIVING)
        connection.call(encode_call(path), end=False)

        def is_received() -> bool:
            connection.flush()
            connection.receive()
            return bool(local.server._calls.count(RECEIVING) > before)

        wait_until(is_received)

    @pytest.mark.parametrize("path", [PREDICT, CHECK, WATCH, "/evalmode.v1.Classifier/GetModel"])
    def test_end_for_calls_of_another_connection_the_oldest_first(self, local: LocalServer, path: str) -> None:
        with Connection(local.address) as many:
            for _ in range(3):
                self.open(local, many, path)
            assert local.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
            assert wait_for_end(many) == (1, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], True)
            assert local.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
            assert many.open_streams == {3, 5}
            assert not many.receive()

    def test_are_refused_if_their_own_connection_has_the_most(self, local: LocalServer) -> None:
        with Connection(local.address) as many:
            for _ in range(3):
                self.open(local, many, CHECK)
            many.call(encode_call(CHECK), message(b""))
            assert wait_for_end(many) == (7, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], True)
            assert many.open_streams == {1, 3, 5}
            many.send(3, message(b""), end=True)
            assert wait_for_end(many) == (3, 0, False)


@dataclass
class Slow:
    """The number of running handlers, and the event that releases them."""

    running: int = 0
    may_continue: threading.Event = field(default_factory=threading.Event)


@contextmanager
def block_handlers(local: LocalServer) -> Iterator[Slow]:
    """Block every call of ``GetModel`` until the event is set."""
    slow, find, lock = Slow(), Models.find, threading.Lock()

    def find_slowly(models: Models, *arguments: str, **options: str) -> Model:
        if threading.current_thread().name.startswith("control"):
            with lock:
                slow.running += 1
            assert slow.may_continue.wait(WAIT_S)
        return find(models, *arguments, **options)

    with patch.object(Models, "find", find_slowly):
        try:
            yield slow
        finally:
            slow.may_continue.set()


def fallback(server: Any) -> GrpcioServer:
    """The grpcio server, also if it runs behind the native one."""
    return getattr(server, "_others", server)


class TestHealth:
    @pytest.mark.parametrize("service", ["", *NAMES])
    def test_of_every_service_is_serving(self, channel: grpc.Channel, service: str) -> None:
        assert check_health(channel, service) == SERVING
        watch = watch_health(channel, service)
        assert next(watch).status == SERVING
        watch.cancel()

    def test_of_an_unknown_service_is_not_found(self, channel: grpc.Channel) -> None:
        refusal = refused(lambda: check_health(channel, "colour"))
        assert (refusal.code.name, refusal.info.reason) == ("NOT_FOUND", "SERVICE_UNKNOWN")

    def test_of_a_model_follows_its_loading_and_unloading(self, local: LocalServer) -> None:
        watch = watch_health(local.channel, "colours")
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        [entry] = local.direct.service._models.list_entries()
        local.server.show([entry])
        assert next(watch).status == SERVING
        assert check_health(local.channel, "colours/1") == SERVING
        local.server.show([])
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()

    def test_many_watches_do_not_block_requests(self, model: ImageClassifier) -> None:
        with LocalServer(BlockedModel(model), limits=Limits(max_queue=0)) as local:
            watches = [watch_health(local.channel) for _ in range(90)]
            assert {next(watch).status for watch in watches} == {SERVING}
            local.blocked.release()
            assert local.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
            for watch in watches:
                watch.cancel()

    def test_is_not_serving_for_good_after_announce_shutdown(self, local: LocalServer) -> None:
        watch = watch_health(local.channel)
        assert next(watch).status == SERVING
        local.server.announce_shutdown()
        assert next(watch).status == NOT_SERVING
        open_inference = inference_grpc.GRPCInferenceServiceStub(local.channel)
        assert not open_inference.ServerReady(inference.ServerReadyRequest(), timeout=WAIT_S).ready
        assert not open_inference.ModelReady(inference.ModelReadyRequest(name="colours"), timeout=WAIT_S).ready
        assert {check_health(local.channel, service) for service in ("", *NAMES)} == {NOT_SERVING}
        local.blocked.release()
        assert local.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
        watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
class TestReflection:
    def test_lists_every_service(self, channel: grpc.Channel, version: str) -> None:
        [answer] = reflect(channel, version, iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        assert sorted(service.name for service in answer.list_services_response.service) == NAMES

    def test_describes_the_classifier(self, channel: grpc.Channel, version: str) -> None:
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="evalmode.v1.Classifier")
        [answer] = reflect(channel, version, iter([request]))
        [serialized] = answer.file_descriptor_response.file_descriptor_proto
        described = descriptor_pb2.FileDescriptorProto.FromString(serialized)
        assert described.package == "evalmode.v1"
        [service] = described.service
        assert [method.name for method in service.method] == ["Predict", "GetModel"]


class TestAddress:
    def test_in_use_is_exit_code_2_with_the_port(self, colours: Path, evalmode: Callable) -> None:
        with closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            refused = evalmode("serve", "--repository", colours, "--port", port)
        assert refused.returncode == 2
        assert f"evalmode: cannot listen on 127.0.0.1:{port}: the port is in use" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert refused.stdout == ""

    def test_of_another_server_is_not_shared(self, server: Server, colours: Path, evalmode: Callable) -> None:
        port = server.address.rpartition(":")[2]
        refused = evalmode("serve", "--repository", colours, "--port", port)
        assert refused.returncode == 2
        assert port in refused.stderr


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one model whose runs take longer than the end of a server without grace."""
    repository = tmp_path_factory.mktemp("slow")
    publish(repository, "colours", colour_artifact(slow_steps=4000))
    return repository


@contextmanager
def busy(repository: Path, *options: object) -> Iterator[tuple[Server, list[grpc.Future], Refusal]]:
    """A server with a slow request in every slot, proven by the refusal of one more request."""
    options = ("--allow-uncertified", "--max-queue", 0, *options)
    with serving(repository, *options) as running, connected(running.address) as channel:
        stub = wire_grpc.ClassifierStub(channel)
        done: queue.Queue[grpc.Future] = queue.Queue()
        requests = [stub.Predict.future(RED, timeout=WAIT_S) for _ in range(count_cpus() + 1)]
        for request in requests:
            request.add_done_callback(done.put)
        first = done.get(timeout=WAIT_S)
        yield running, [request for request in requests if request is not first], read_error(first.exception())


@pytest.fixture
def hangups() -> Iterator[None]:
    """Processes that the test starts receive SIGHUP, although the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class TestShutdown:
    def test_is_announced_while_requests_are_answered_and_ends_with_a_second_signal(self, colours: Path) -> None:
        with serving(colours, "--lame-duck", 3600) as running, connected(running.address) as channel:
            watch = watch_health(channel)
            assert next(watch).status == SERVING
            running.process.send_signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            assert check_health(channel, "evalmode.v1.Classifier") == NOT_SERVING
            with Client(running.address) as client:
                assert client.predict(RED.image).label == "red"
            code, logged = running.stop(signal.SIGTERM)
        assert code == 1
        assert "shutting down: NOT_SERVING, answering for 3600 s more" in logged
        assert "Traceback" not in logged

    @pytest.mark.parametrize(
        "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["SIGTERM", "SIGINT", "SIGHUP"]
    )
    @pytest.mark.usefixtures("hangups")
    def test_waits_for_requests_in_flight(self, slow: Path, number: signal.Signals) -> None:
        with busy(slow, "--grace", 60) as (running, requests, refusal):
            assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            assert dict(refusal.info.metadata) == {"limit_requests": str(count_cpus())}
            assert refusal.retry is not None
            code, logged = running.stop(number)
            assert [request.result().scores[0].label for request in requests] == ["red"] * count_cpus()
        assert code == 0
        assert logged.splitlines()[-1].endswith(f"INFO all requests answered: {count_cpus()}")

    def test_cuts_requests_after_the_grace_period_and_reports_their_number(self, slow: Path) -> None:
        with busy(slow, "--grace", 0) as (running, requests, _):
            code, logged = running.stop()
            assert {request.code() for request in requests} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert code == 1
        cut = re.search(r"ERROR (\d+) requests did not finish within 0 s and were cut$", logged.splitlines()[-1])
        assert cut, logged
        assert int(cut[1]) >= count_cpus()  # and calls whose reply is on its way, such as the refused one

    def test_begins_whatever_the_main_thread_does(self) -> None:
        code = (
            "from serving.process import listen_for_signals\n"
            "stop = listen_for_signals()\n"
            "print('ready', flush=True)\n"
            "while not stop.wait(0): pass  # it holds the lock of the event most of the time"
        )
        for _ in range(5):
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
                try:
                    assert process.stdout is not None
                    assert process.stdout.readline() == b"ready\n"
                    process.terminate()
                    assert process.wait(WAIT_S) == 0
                finally:
                    process.kill()

    def test_ends_at_a_second_signal_while_draining(self, slow: Path) -> None:
        with busy(slow, "--grace", 3600) as (running, requests, _):
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "shutting down" in running.logged())
            code, logged = running.stop(signal.SIGINT)
            assert {request.code() for request in requests} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert code == 1
        assert "all requests answered" not in logged

    def test_does_not_wait_for_open_streams(self, colours: Path) -> None:
        stopped = threading.Event()

        def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            stopped.wait(WAIT_S)

        with serving(colours, "--grace", 3600) as running, connected(running.address) as channel:
            watch, reflection = watch_health(channel), reflect(channel, "v1", requests())
            assert next(watch).status == SERVING
            assert next(reflection).HasField("list_services_response")
            code, logged = running.stop()
            stopped.set()
        assert code == 0, logged

    def test_ignores_sighup_under_nohup(self, colours: Path) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; child processes inherit it
        try:
            with serving(colours) as running:
                signal.signal(signal.SIGHUP, before)
                running.process.send_signal(signal.SIGHUP)
                with Client(running.address) as client:
                    assert client.predict(RED.image).label == "red"
                assert "shutting down" not in running.logged()
                code, logged = running.stop(signal.SIGTERM)
        finally:
            signal.signal(signal.SIGHUP, before)
        assert code == 0
        assert logged.count("shutting down") == 1

    def test_ends_although_a_thread_blocks_forever(self, colours: Path) -> None:
        code = (
            "import sys, threading\n"
            "from serving.transports.grpcio import GrpcioServer\n"
            "GrpcioServer.announce_shutdown = lambda self: threading.Event().wait()\n"
            "from evalmode.cli.main import main\n"
            "main()"
        )
        options = ("--repository", str(colours), "--port", "0", "--no-metrics", "--lame-duck", "0", "--grace", "0")
        command = [sys.executable, "-c", code, "serve", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                assert process.stdout.readline().startswith(b"serving")
                process.terminate()
                assert process.wait(WAIT_S) == 1
                assert b"all requests answered" not in process.stderr.read()
            finally:
                process.kill()


class TestDrain:
    """In this process, where the test controls the order of events."""

    @pytest.mark.native_lacks("sent replies")
    def test_ends_after_the_replies_were_sent(self, local: LocalServer) -> None:
        drained, finishing, finish = threading.Event(), threading.Event(), outcomes.serialize

        def finish_late(reply: Any) -> bytes:
            finishing.set()
            drained.wait(1)  # gives a drain that ends too early the time to do so
            return finish(reply)

        with patch.object(handlers, "serialize", finish_late):
            running = local.occupy()
            drain = spawn(local.drain, WAIT_S)
            drain.add_done_callback(lambda _: drained.set())
            local.blocked.release()
            assert running.result().scores[0].label == "red"
            assert drain.result(WAIT_S) == 0
        assert finishing.is_set()

    @pytest.mark.native_lacks("sent replies")
    @pytest.mark.parametrize("reads", [False, True])
    def test_waits_for_replies_that_the_client_has_not_read(self, local: LocalServer, reads: bool) -> None:
        calls = local.server._calls
        local.blocked.release()

        def is_sending() -> bool:
            unread.flush()
            assert not unread.receive()
            return calls.count(SENDING) == 1

        with Connection(local.address, window=0) as unread:
            stream = unread.call(encode_call(PREDICT), message(RED.SerializeToString()))
            wait_until(is_sending)
            if reads:
                drain = spawn(local.drain, WAIT_S)
                wait_until(lambda: local.server._handlers.leaving)
                unread.write(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1000)))
                assert wait_for_end(unread).status == 0
                unread.close()
                assert drain.result(WAIT_S) == 0
            else:
                assert local.drain(0.1) == 1

    def test_counts_the_running_and_waiting_requests_that_it_cuts(self, model: ImageClassifier) -> None:
        for _ in range(5):
            with LocalServer(BlockedModel(model)) as local:
                requests = [local.occupy(), local.enqueue(), local.enqueue(), local.enqueue()]
                assert local.drain(0.3) == 4
                codes = {request.code() for request in requests}
                assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}

    def test_answers_waiting_requests_before_it_ends(self, local: LocalServer) -> None:
        requests = [local.occupy(), local.enqueue(), local.enqueue()]
        with ThreadPoolExecutor(1) as thread:
            drained = thread.submit(local.drain, WAIT_S)
            local.blocked.release(2)
            assert [request.result().scores[0].label for request in requests] == ["red"] * 3
            assert drained.result(WAIT_S) == 0

    def test_refuses_new_requests_with_a_reason(self, local: LocalServer) -> None:
        running = local.occupy()
        drained = spawn(local.drain, WAIT_S)
        native = tests.conftest.transport == "native"
        wait_until(lambda: local.server._draining if native else local.server._handlers.leaving)
        refusal = refused(lambda: local.stub.Predict(RED, timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("UNAVAILABLE", "SERVER_LEAVING")
        local.blocked.release()
        assert running.result().scores[0].label == "red"
        assert drained.result(WAIT_S) == 0

    def test_ends_streams_after_their_current_reply(self, local: LocalServer) -> None:
        """An idle stream ends at once, a busy one after its reply."""
        request = inference.ModelInferRequest(model_name="colours")
        request.inputs.add(name="image", datatype="UINT8", shape=(1, 4, 4, 3))
        request.raw_input_contents.append(bytes(48))
        ended = threading.Event()

        def requests() -> Iterator[inference.ModelInferRequest]:
            yield request
            ended.wait(WAIT_S)

        stub = inference_grpc.GRPCInferenceServiceStub(local.channel)
        streams = [stub.ModelStreamInfer(requests(), timeout=WAIT_S) for _ in range(2)]
        local.blocked.release()
        replies = [spawn(next, stream) for stream in streams]
        wait_until(lambda: sum(reply.done() for reply in replies) == 1)
        drained = spawn(local.drain, WAIT_S)
        idle, busy = sorted(range(2), key=lambda number: not replies[number].done())
        refusals = [refused(lambda: next(streams[idle]))]
        local.blocked.release()
        assert not replies[busy].result(WAIT_S).error_message
        refusals.append(refused(lambda: next(streams[busy])))
        assert {(one.code.name, one.info.reason) for one in refusals} == {("UNAVAILABLE", "SERVER_LEAVING")}
        assert drained.result(WAIT_S) == 0
        ended.set()

    def test_refuses_requests_after_its_end(self, local: LocalServer) -> None:
        assert local.drain(1) == 0
        assert refused(lambda: local.stub.Predict(RED, timeout=WAIT_S)).code is grpc.StatusCode.UNAVAILABLE


def test_a_start_that_fails_leaves_no_thread_and_no_port(model: ImageClassifier) -> None:
    backend = make_backend(classify_by(model), Limits())
    before = set(threading.enumerate())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        patch("serving.transports.grpcio.make_socket_folder", side_effect=AddressUnavailable("no folder")),
        pytest.raises(AddressUnavailable, match="no folder"),
    ):
        GrpcioServer(backend, f"127.0.0.1:{port}", reuse_port=True)
    prefixes = ("event-loop", "control", "connections")
    wait_until(lambda: not [one for one in set(threading.enumerate()) - before if one.name.startswith(prefixes)])
    with socket.create_server(("127.0.0.1", port)):
        pass
