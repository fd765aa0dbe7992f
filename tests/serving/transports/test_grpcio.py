"""The wire: real sockets, every status with its reason, health, reflection, and what signals do to requests."""

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
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
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
from http2 import (
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
from PIL import Image

import tests.conftest
from evalmode.artifact.publishing import publish
from evalmode.artifact.tensors import Tensors
from evalmode.client import Client
from evalmode.errors import RequestError
from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from evalmode.runtime.model import Model
from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import classifier_pb2_grpc as wire_grpc
from evalmode.wire import open_inference_pb2 as inference
from evalmode.wire import open_inference_pb2_grpc as inference_grpc
from serving.engine.batch import Call
from serving.services.access import Access, Tokens
from serving.services.classifier import Classifier
from serving.services.inference import Inference
from serving.services.models import Models
from serving.services.source import Source
from serving.services.statistics import Statistics
from serving.services.status import CODES, RETRY_AFTER_S, reason_of
from serving.transports import handlers
from serving.transports.calls import RECEIVING, RUNNING, SENDING
from serving.transports.grpcio import CONTROL_THREADS, GrpcioServer
from tests.conftest import Server, colour_artifact, encode, plain, serving
from tests.serving.conftest import (
    WAIT_S,
    Direct,
    Held,
    classify_by,
    listen,
    make_batcher,
    make_budget,
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
    """What a client learns of a call that failed."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    fields: list[str]
    retry: error_details_pb2.RetryInfo | None
    id: str


def refusal_of(error: grpc.RpcError) -> Refusal:
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
    return refusal_of(caught.value)


def check_health(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=WAIT_S).status


def watch_health(channel: grpc.Channel, service: str = "") -> grpc.Call:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)


def reflect(channel: grpc.Channel, version: str, requests: Iterator[reflection_pb2.ServerReflectionRequest]):
    """A reflection stream by the path of its version, as tools ask for it."""
    return channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(requests, timeout=WAIT_S)


class TestPredict:
    def test_answers_for_an_image(self, server: Server) -> None:
        with Client(server.address) as client:
            answer = client.predict(
                encode(plain((0, 0, 255), (640, 480)), "JPEG"), model="colours", version="1", top_k=2
            )
        assert [score.label for score in answer.scores] == ["blue", "red"]
        assert (answer.label, answer.model, answer.version) == ("blue", "colours", "1")
        assert answer.digest.startswith("sha256:")
        assert answer.decode_us > 0
        assert answer.inference_us > 0

    def test_answers_for_pixels(self, server: Server) -> None:
        with Client(server.address) as client:
            assert client.predict_pixels(np.full((4, 4, 3), (0, 200, 0), np.uint8)).label == "green"

    def test_has_the_bits_of_the_model_in_this_process(self, server: Server, model: Model) -> None:
        with Client(server.address) as client:
            for seed in range(5):
                noise = np.random.default_rng(seed).integers(0, 256, (50, 37, 3), np.uint8)
                image = encode(Image.fromarray(noise), "JPEG")
                assert client.predict(image).scores == model.predict(image).scores

    def test_answers_many_at_the_same_time(self, server: Server) -> None:
        colours = ["red", "lime", "blue"] * 40
        with Client(server.address, timeout_s=WAIT_S) as client, ThreadPoolExecutor(24) as threads:
            answers = threads.map(lambda colour: client.predict(encode(plain(colour))).label, colours)
            assert list(answers) == ["red", "green", "blue"] * 40


class TestRefusals:
    """Everything that a client can cause, each with its code, reason, domain and facts."""

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

    def test_of_a_model_in_get_model(self, channel: grpc.Channel) -> None:
        stub = wire_grpc.ClassifierStub(channel)
        refusal = refused(lambda: stub.GetModel(wire.GetModelRequest(version="2"), timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert refusal.message == "Request for unknown model: 'colours/2' is not found, served: colours/1"

    @pytest.mark.parametrize("name", ["cats\n\0", "кошки ☃", "x" * 20_000], ids=["control", "unicode", "long"])
    def test_of_any_name_arrive_whole(self, channel: grpc.Channel, name: str) -> None:
        stub = wire_grpc.ClassifierStub(channel)
        refusal = refused(lambda: stub.Predict(wire.PredictRequest(image=b"x", model=name), timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        told = f"Request for unknown model: {name!r} is not found, served: colours/1"
        assert refusal.message == told or refusal.message.endswith("x…")

    def test_of_a_request_over_the_limit_are_the_transports_own(self, channel: grpc.Channel) -> None:
        stub = wire_grpc.ClassifierStub(channel)
        refusal = refused(lambda: stub.Predict(wire.PredictRequest(image=bytes(32 * 2**20)), timeout=WAIT_S))
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in refusal.message
        assert refusal.retry is None

    def test_of_bytes_that_are_no_request_tell_nothing_of_the_server(self, channel: grpc.Channel) -> None:
        raw = channel.unary_unary("/evalmode.v1.Classifier/Predict")
        refusal = refused(lambda: raw(b"\xff\xff\xff", timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")
        assert refusal.message == "the message of 3 bytes cannot be parsed: send the request message of this method"

    def test_of_an_unknown_method(self, channel: grpc.Channel) -> None:
        raw = channel.unary_unary("/evalmode.v1.Classifier/Train")
        refusal = refused(lambda: raw(b"", timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("UNIMPLEMENTED", "METHOD_UNKNOWN")
        assert "'/evalmode.v1.Classifier/Train'" in refusal.message

    def test_where_several_models_are_served(self, tmp_path: Path) -> None:
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
class Here:
    """A server in this process, on a real socket, whose model runs when it is let go."""

    held: Held
    slots: int = 1
    limits: Limits = field(default_factory=Limits)
    access: Access | None = None

    def __enter__(self) -> Here:
        self.direct = classify_by(self.held, batcher=make_batcher(self.slots, self.limits), limits=self.limits)
        self.batcher, self.statistics = self.direct.inference.batcher, self.direct.inference.statistics
        self.server = listen(self.direct, self.limits, self.access)
        self.address = f"127.0.0.1:{self.server.port}"
        self.channel = grpc.insecure_channel(self.address)
        self.stub = wire_grpc.ClassifierStub(self.channel)
        self._drained = False
        return self

    def __exit__(self, *_: object) -> None:
        self.held.let_go(1000)
        self.channel.close()
        if not self._drained:
            self.drain(0)

    def drain(self, grace_s: float) -> int:
        """See the server's; it is drained once."""
        self._drained = True
        return self.server.drain(grace_s)

    def occupy(self) -> grpc.Future:
        """A request that holds the slot."""
        future = self.stub.Predict.future(RED, timeout=WAIT_S)
        self.held.next_batch()
        return future

    def enqueue(self, timeout_s: float | None = WAIT_S) -> grpc.Future:
        """A request that stands in the queue."""
        before = self.count_queued()
        future = self.stub.Predict.future(RED, timeout=timeout_s)
        wait_until(lambda: self.count_queued() > before)
        return future

    def count_queued(self) -> int:
        """How many requests stand in the queue."""
        return len(self.server._waiting) if tests.conftest.transport == "native" else self.batcher.load().waiting

    def wait_until_left(self, *reasons: str) -> None:
        """Until the queue is empty, and a request was refused with one of these reasons."""
        wait_until(lambda: not self.count_queued())
        counts = self.statistics.counts  # natively, of no model
        wait_until(lambda: {reason for one in list(counts.values()) for _, reason in one.codes} & {*reasons})


@pytest.fixture
def here(model: Model) -> Iterator[Here]:
    with Here(Held(model)) as running:
        yield running


class TestWaiting:
    def test_beyond_the_queue_is_refused_with_a_time_to_retry(self, model: Model) -> None:
        with Here(Held(model), limits=Limits(max_queue=1)) as here:
            answers = [here.occupy(), here.enqueue()]
            refusal = refused(lambda: here.stub.Predict(RED, timeout=WAIT_S))
            assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            assert dict(refusal.info.metadata) == {"limit_requests": "2"}
            assert refusal.retry is not None
            assert refusal.retry.retry_delay.ToMilliseconds() == 100
            assert here.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S).limits["max_queue"] == 1
            here.held.let_go(3)
            assert [answer.result().scores[0].label for answer in answers] == ["red", "red"]
            assert here.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"

    def test_is_left_when_the_caller_cancels_and_never_runs(self, here: Here) -> None:
        running = here.occupy()
        waiting = here.enqueue()
        waiting.cancel()
        here.wait_until_left("REQUEST_CANCELLED")
        here.held.let_go()
        assert running.result().scores[0].label == "red"
        assert here.held.entered.empty()
        here.occupy()  # the slot is free

    def test_is_left_when_the_callers_process_dies(self, here: Here) -> None:
        running = here.occupy()
        caller = (
            "import sys; from evalmode.client import Client; Client(sys.argv[1], 60).predict(sys.stdin.buffer.read())"
        )
        with subprocess.Popen([sys.executable, "-c", caller, here.address], stdin=subprocess.PIPE) as process:
            process.stdin.write(RED.image)
            process.stdin.close()
            wait_until(here.count_queued)
            process.kill()
        here.wait_until_left("REQUEST_CANCELLED")
        here.held.let_go()
        assert running.result().scores[0].label == "red"
        assert here.held.entered.empty()

    def test_is_left_when_the_deadline_passes_and_never_runs(self, here: Here) -> None:
        running = here.occupy()
        waiting = here.enqueue(timeout_s=0.3)
        assert waiting.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # Which of the two it is depends on who looks at the clock first: the client, which then cancels, or the server.
        here.wait_until_left("DEADLINE_EXPIRED", "REQUEST_CANCELLED")
        here.held.let_go()
        assert running.result().scores[0].label == "red"
        assert here.held.entered.empty()

    def test_without_a_deadline_is_endless(self, here: Here) -> None:
        running = here.occupy()
        waiting = here.enqueue(timeout_s=None)
        here.held.let_go(2)
        assert [answer.result(WAIT_S).scores[0].label for answer in (running, waiting)] == ["red", "red"]

    @pytest.mark.native_lacks("early refusal")
    def test_beyond_the_queue_is_refused_without_its_message(self, model: Model) -> None:
        with Here(Held(model), limits=Limits(max_queue=0)) as here, Connection(here.address) as other:
            running = here.occupy()
            other.call(encode_call(PREDICT), end=False)
            assert end_of(other).status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            assert here.statistics.refused == {("RESOURCE_EXHAUSTED", "QUEUE_FULL"): 1}
            here.held.let_go()
            assert running.result().scores[0].label == "red"

    @pytest.mark.native_lacks("early refusal")
    def test_that_would_end_after_the_deadline_is_refused_at_once(self, here: Here) -> None:
        running = here.occupy()
        here.batcher.pace.note(60.0, 0)
        refusal = refused(lambda: here.stub.Predict(RED, timeout=10))
        assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        assert refusal.message.startswith("the requests in flight take longer than the deadline of this request")
        waiting = here.enqueue(timeout_s=None)
        here.held.let_go(2)
        assert [answer.result(WAIT_S).scores[0].label for answer in (running, waiting)] == ["red", "red"]

    @pytest.mark.native_lacks("early refusal")
    def test_too_late_even_for_a_refusal_is_no_answer(self, model: Model) -> None:
        """The deadline passes before a refusal is read; a client whose clock is behind must not read an answer."""
        with (
            Here(Held(model), limits=Limits(max_queue=0)) as here,
            patch("serving.transports.handlers.HOPELESS_S", WAIT_S),
        ):
            running = here.occupy()
            refusal = refused(lambda: here.stub.Predict(RED, timeout=WAIT_S / 2))
            assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
            here.held.let_go()
            assert running.result().scores[0].label == "red"

    @pytest.mark.native_lacks("early refusal")
    def test_beyond_the_queue_tells_a_stranger_nothing_of_the_load(self, model: Model, tmp_path: Path) -> None:
        (tmp_path / "tokens").write_text(TOKEN)
        access = Access(Tokens(tmp_path / "tokens"), None)
        with Here(Held(model), limits=Limits(max_queue=0), access=access) as here:
            running = here.stub.Predict.future(RED, timeout=WAIT_S, metadata=AUTHORIZED)
            here.held.next_batch()
            assert refused(lambda: here.stub.Predict(RED, timeout=WAIT_S)).info.reason == "TOKEN_INVALID"
            refusal = refused(lambda: here.stub.Predict(RED, timeout=WAIT_S, metadata=AUTHORIZED))
            assert refusal.info.reason == "QUEUE_FULL"
            here.held.let_go()
            assert running.result().scores[0].label == "red"


def end_of(connection: Connection) -> Ended:
    """How the next call on a connection made by hand ends."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        connection.flush()
        if ended := connection.receive():
            return ended[0]
        time.sleep(0.005)
    raise AssertionError("no call ended")


class Raising(Classifier):
    """A service that raises what it was given."""

    def __init__(self, error: Exception) -> None:
        super().__init__(Models({}, Source(Path())), Limits(), make_budget())
        self._error = error

    def find(self, request: wire.PredictRequest) -> Model:
        raise self._error

    def get_model(self, request: wire.GetModelRequest, call: Call) -> wire.GetModelResponse:
        raise self._error


@contextmanager
def raising(error: Exception) -> Iterator[wire_grpc.ClassifierStub]:
    server = listen(Direct(Raising(error), Inference(make_batcher(), make_budget(), Statistics())))
    with connected(f"127.0.0.1:{server.port}") as channel:
        yield wire_grpc.ClassifierStub(channel)
    server.drain(0)


def list_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged but for asyncio: grpcio hands it events of servers that have ended, whose loop is closed."""
    return [record for record in caplog.records if record.name != "asyncio"]


class TestErrors:
    @pytest.mark.parametrize("error", CODES, ids=lambda error: error.__name__)
    def test_of_every_row_have_its_status(self, error: type[RequestError], caplog: pytest.LogCaptureFixture) -> None:
        with raising(error("what is wrong: wörds", size_bytes=3)) as stub:
            for call in (stub.Predict, stub.GetModel):
                refusal = refused(lambda call=call: call(type_of(call)(), timeout=WAIT_S))
                assert refusal.code.name == CODES[error]
                assert refusal.message == "what is wrong: wörds"
                assert refusal.info == error_details_pb2.ErrorInfo(
                    reason=reason_of(error), domain="evalmode", metadata={"size_bytes": "3"}
                )
                assert (refusal.retry is not None) == (error in RETRY_AFTER_S)
        assert list_records(caplog) == []  # a caller's mistake is no line in the server's log

    @pytest.mark.parametrize(
        "error", [ValueError("secret"), KeyError("secret"), MemoryError("secret"), OSError("secret")]
    )
    def test_of_the_server_show_an_id_alone(self, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
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

    def test_of_the_server_have_an_id_each(self) -> None:
        with raising(ValueError()) as stub:
            ids = {refused(lambda: stub.Predict(RED, timeout=WAIT_S)).info.metadata["id"] for _ in range(5)}
        assert len(ids) == 5

    def test_of_grpcio_are_logged_but_for_a_client_that_went_while_its_answer_was_sent(
        self, here: Here, caplog: pytest.LogCaptureFixture
    ) -> None:
        log = logging.getLogger("grpc._cython.cygrpc")  # its words, in callback_common.pyx.pxi and server.pyx.pxi
        log.error("ExecuteBatchError raised in core by servicer method [%s]", "Predict")
        log.error("Unexpected [%s] raised by servicer method [%s]", "ValueError", "Predict")
        assert [record.args[0] for record in caplog.records] == ["ValueError"]

    def test_of_a_network_that_fails_are_internal_and_the_next_request_is_answered(
        self, model: Model, caplog: pytest.LogCaptureFixture
    ) -> None:
        class FailsOnce(Held):
            failed = False

            def run(self, inputs: Tensors) -> Tensors:
                if not self.failed:
                    self.failed = True
                    raise RuntimeError("out of memory at address 0x7f")
                return model.run(inputs)

        with Here(FailsOnce(model), limits=Limits(max_queue=0)) as here:
            refusal = refused(lambda: here.stub.Predict(RED, timeout=WAIT_S))
            assert (refusal.code.name, refusal.info.reason) == ("INTERNAL", "INTERNAL")
            assert "address" not in refusal.message
            assert here.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
        assert "out of memory at address 0x7f" in caplog.text

    def test_fit_into_the_trailers_however_many_models_are_served(self, model: Model) -> None:
        models = {f"{number:03d}" + "m" * 100: model for number in range(200)}
        models = {name: replace(model, name=name) for name in models}
        server = listen(classify_by(*models.values()))
        with connected(f"127.0.0.1:{server.port}") as channel:
            refusal = refused(lambda: wire_grpc.ClassifierStub(channel).Predict(RED, timeout=WAIT_S))
        server.drain(0)
        assert (refusal.code.name, refusal.info.reason) == ("INVALID_ARGUMENT", "MODEL_UNSPECIFIED")


def type_of(call: grpc.UnaryUnaryMultiCallable) -> type:
    """The request that a stub's method takes."""
    return wire.PredictRequest if b"Predict" in call._method else wire.GetModelRequest


class TestControlCalls:
    """On grpcio, as everything but Predict and ModelInfer is on native."""

    def test_too_many_are_refused_with_a_time_to_retry(self, here: Here) -> None:
        with patch("serving.transports.controls.MAX_CONTROLS", 0):
            refusal = refused(lambda: here.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "CALLS_FULL")
        assert refusal.retry is not None
        assert here.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S).model == "colours"

    def test_beyond_the_threads_wait_and_are_answered(self, here: Here) -> None:
        with slow_handlers(here) as slow:
            calls = [here.stub.GetModel.future(wire.GetModelRequest(), timeout=WAIT_S) for _ in range(20)]
            wait_until(lambda: slow.running == CONTROL_THREADS)
            slow.go_on.set()
            assert {call.result().model for call in calls} == {"colours"}
            assert refused(lambda: here.stub.GetModel(wire.GetModelRequest(model="x"))).code.name == "NOT_FOUND"

    def test_give_their_place_back_however_they_end(self, here: Here) -> None:
        with patch("serving.transports.controls.MAX_CONTROLS", 1):
            for _ in range(3):
                assert here.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S).model == "colours"
                refusal = refused(lambda: here.stub.GetModel(wire.GetModelRequest(model="x"), timeout=WAIT_S))
                assert refusal.info.reason == "MODEL_NOT_FOUND"
                raw = here.channel.unary_unary("/evalmode.v1.Classifier/GetModel")
                assert refused(lambda raw=raw: raw(b"\xff", timeout=WAIT_S)).info.reason == "MESSAGE_INVALID"

    def test_that_are_cancelled_keep_their_place_until_their_thread_is_free(self, here: Here) -> None:
        with slow_handlers(here) as slow, patch("serving.transports.controls.MAX_CONTROLS", 1):
            call = here.stub.GetModel.future(wire.GetModelRequest(), timeout=WAIT_S)
            wait_until(lambda: slow.running == 1)
            call.cancel()
            others = fallback(here.server)
            wait_until(lambda: not others._calls.count(RECEIVING, RUNNING, SENDING))
            refusal = refused(lambda: here.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S))
            assert refusal.info.reason == "CALLS_FULL"
            slow.go_on.set()
            wait_until(lambda: not others._handlers._controls.running)
            assert here.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S).model == "colours"


@pytest.mark.native_lacks("early refusal")
class TestRefusedCalls:
    """What they hold is free at once: there may be many."""

    @pytest.mark.parametrize("path", [PREDICT, CHECK, "/evalmode.v1.Classifier/GetModel", "/evalmode.v1.Classifier/X"])
    @pytest.mark.parametrize("is_full", [False, True])
    def test_end_although_the_client_takes_no_message(self, model: Model, path: str, is_full: bool) -> None:
        with Here(Held(model), limits=Limits(max_queue=0)) as here, Connection(here.address, window=0) as other:
            running = [here.occupy()] if is_full else []
            other.call(encode_call(path), message(b"\xff"))
            assert end_of(other).status > 0
            wait_until(lambda: here.server._calls.count(RECEIVING, RUNNING, SENDING) == len(running))

    @pytest.mark.parametrize(
        "path", [PREDICT, STREAM_INFER, INFER, CHECK, "/evalmode.v1.Classifier/GetModel", "/evalmode.v1.Classifier/X"]
    )
    def test_leave_no_message_to_the_garbage_collector(self, here: Here, path: str) -> None:
        method, damaged = here.channel.stream_stream(path), b"\xff" * 2**20
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(10):
                assert refused(lambda: list(method(iter([damaged]), timeout=WAIT_S))).code.value[0] > 0
            wait_until(lambda: not here.server._calls._open)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
        assert kept < 5 * 2**20


@pytest.mark.native_lacks("connections")
class TestCallsThatWaitForTheirMessage:
    @pytest.fixture
    def here(self, model: Model) -> Iterator[Here]:
        with patch("serving.transports.receiving.MAX_RECEIVING", 3), Here(Held(model)) as running:
            running.held.let_go(10)
            yield running

    def open(self, here: Here, connection: Connection, path: str) -> None:
        """A call without a message, once the server has seen it."""
        before = here.server._calls.count(RECEIVING)
        connection.call(encode_call(path), end=False)
        wait_until(lambda: connection.flush() or connection.receive() or here.server._calls.count(RECEIVING) > before)

    @pytest.mark.parametrize("path", [PREDICT, CHECK, WATCH, "/evalmode.v1.Classifier/GetModel"])
    def test_give_way_to_another_connection_the_oldest_first(self, here: Here, path: str) -> None:
        with Connection(here.address) as many:
            for _ in range(3):
                self.open(here, many, path)
            assert here.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
            assert end_of(many) == (1, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], True)
            assert here.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
            assert many.open_streams == {3, 5}
            assert not many.receive()

    def test_are_refused_where_their_own_connection_has_the_most(self, here: Here) -> None:
        with Connection(here.address) as many:
            for _ in range(3):
                self.open(here, many, CHECK)
            many.call(encode_call(CHECK), message(b""))
            assert end_of(many) == (7, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], True)
            assert many.open_streams == {1, 3, 5}
            many.send(3, message(b""), end=True)
            assert end_of(many) == (3, 0, False)


@dataclass
class Slow:
    """How many handlers run, and what lets them go on."""

    running: int = 0
    go_on: threading.Event = field(default_factory=threading.Event)


@contextmanager
def slow_handlers(here: Here) -> Iterator[Slow]:
    """Every call that looks for a model in ``GetModel`` waits until it may go on."""
    slow, find, lock = Slow(), Models.find, threading.Lock()

    def find_slowly(models: Models, *arguments: str, **options: str) -> Model:
        if threading.current_thread().name.startswith("control"):
            with lock:
                slow.running += 1
            assert slow.go_on.wait(WAIT_S)
        return find(models, *arguments, **options)

    with patch.object(Models, "find", find_slowly):
        try:
            yield slow
        finally:
            slow.go_on.set()


def fallback(server: Any) -> GrpcioServer:
    """The grpcio server, also where it stands behind the native one."""
    return getattr(server, "_others", server)


class TestHealth:
    @pytest.mark.parametrize("service", ["", *NAMES])
    def test_of_every_service_is_serving(self, channel: grpc.Channel, service: str) -> None:
        assert check_health(channel, service) == SERVING
        watch = watch_health(channel, service)
        assert next(watch).status == SERVING
        watch.cancel()

    def test_of_another_service_is_not_found(self, channel: grpc.Channel) -> None:
        refusal = refused(lambda: check_health(channel, "colour"))
        assert (refusal.code.name, refusal.info.reason) == ("NOT_FOUND", "SERVICE_UNKNOWN")

    def test_of_a_model_that_comes_and_goes_is_watched(self, here: Here) -> None:
        watch = watch_health(here.channel, "colours")
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        [entry] = here.direct.service._models.list_entries()
        here.server.show([entry])
        assert next(watch).status == SERVING
        assert check_health(here.channel, "colours/1") == SERVING
        here.server.show([])
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()

    def test_is_watched_by_many_without_holding_up_requests(self, model: Model) -> None:
        with Here(Held(model), limits=Limits(max_queue=0)) as here:
            watches = [watch_health(here.channel) for _ in range(90)]
            assert {next(watch).status for watch in watches} == {SERVING}
            here.held.let_go()
            assert here.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
            for watch in watches:
                watch.cancel()

    def test_turns_for_good_when_shutdown_is_announced(self, here: Here) -> None:
        watch = watch_health(here.channel)
        assert next(watch).status == SERVING
        here.server.announce_shutdown()
        assert next(watch).status == NOT_SERVING
        theirs = inference_grpc.GRPCInferenceServiceStub(here.channel)
        assert not theirs.ServerReady(inference.ServerReadyRequest(), timeout=WAIT_S).ready
        assert not theirs.ModelReady(inference.ModelReadyRequest(name="colours"), timeout=WAIT_S).ready
        assert {check_health(here.channel, service) for service in ("", *NAMES)} == {NOT_SERVING}
        here.held.let_go()
        assert here.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
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
    def test_in_use_is_exit_2_naming_the_port(self, colours: Path, evalmode: Callable) -> None:
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
    """A repository whose one model takes some seconds: longer than a server without grace takes to end."""
    repository = tmp_path_factory.mktemp("slow")
    publish(repository, "colours", colour_artifact(slow_steps=4000))
    return repository


@contextmanager
def busy(repository: Path, *options: object) -> Iterator[tuple[Server, list[grpc.Future], Refusal]]:
    """A server with a slow request in every slot, seen by the refusal of one more."""
    options = ("--allow-uncertified", "--max-queue", 0, *options)
    with serving(repository, *options) as running, connected(running.address) as channel:
        stub = wire_grpc.ClassifierStub(channel)
        done: queue.Queue[grpc.Future] = queue.Queue()
        requests = [stub.Predict.future(RED, timeout=WAIT_S) for _ in range(count_cpus() + 1)]
        for request in requests:
            request.add_done_callback(done.put)
        first = done.get(timeout=WAIT_S)
        yield running, [request for request in requests if request is not first], refusal_of(first.exception())


class TestShutdown:
    def test_is_announced_while_requests_are_still_answered_and_a_second_signal_ends_it(self, colours: Path) -> None:
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
    def test_waits_for_requests_in_flight(self, slow: Path, number: signal.Signals) -> None:
        with busy(slow, "--grace", 60) as (running, requests, refusal):
            assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            assert dict(refusal.info.metadata) == {"limit_requests": str(count_cpus())}
            assert refusal.retry is not None
            code, logged = running.stop(number)
            assert [request.result().scores[0].label for request in requests] == ["red"] * count_cpus()
        assert code == 0
        assert logged.splitlines()[-1].endswith(f"INFO all requests answered: {count_cpus()}")

    def test_cuts_what_does_not_end_in_time_and_says_how_many(self, slow: Path) -> None:
        with busy(slow, "--grace", 0) as (running, requests, _):
            code, logged = running.stop()
            assert {request.code() for request in requests} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert code == 1
        cut = re.search(r"ERROR (\d+) requests did not finish within 0 s and were cut$", logged.splitlines()[-1])
        assert cut, logged
        assert int(cut[1]) in (count_cpus(), count_cpus() + 1)  # the refused one may still be on its way out

    def test_begins_wherever_the_main_thread_is(self) -> None:
        code = (
            "from serving.process import listen_for_signals\n"
            "stop = listen_for_signals()\n"
            "print('ready', flush=True)\n"
            "while not stop.wait(0): pass  # most of the time it holds the lock of the event"
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

    def test_while_draining_ends_by_the_second_signal(self, slow: Path) -> None:
        with busy(slow, "--grace", 3600) as (running, requests, _):
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "shutting down" in running.logged())
            code, logged = running.stop(signal.SIGINT)
        assert code == 1
        assert "all requests answered" not in logged
        assert requests

    def test_does_not_wait_for_streams_that_stay_open(self, colours: Path) -> None:
        forever = threading.Event()

        def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            forever.wait(WAIT_S)

        with serving(colours, "--grace", 3600) as running, connected(running.address) as channel:
            watch, reflection = watch_health(channel), reflect(channel, "v1", requests())
            assert next(watch).status == SERVING
            assert next(reflection).HasField("list_services_response")
            code, logged = running.stop()
            forever.set()
        assert code == 0, logged

    def test_under_nohup_is_not_for_sighup(self, colours: Path) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does it; children inherit that
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

    def test_ends_whatever_its_threads_wait_for(self, colours: Path) -> None:
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
                assert process.stdout.readline().startswith(b"serving")
                process.terminate()
                assert process.wait(WAIT_S) == 1
                assert b"all requests answered" not in process.stderr.read()
            finally:
                process.kill()


class TestDrain:
    """In this process, where the order of events is in the test's hand."""

    def test_ends_after_the_replies_have_left(self, here: Here) -> None:
        drained, finish = threading.Event(), handlers.serialize

        def finish_late(reply: Any) -> bytes:
            drained.wait(1)  # the answer is known, and a drain that ends too early has the time to
            return finish(reply)

        with patch.object(handlers, "serialize", finish_late):
            running = here.occupy()
            drain = spawn(here.drain, WAIT_S)
            drain.add_done_callback(lambda _: drained.set())
            here.held.let_go()
            assert running.result().scores[0].label == "red"
            assert drain.result(WAIT_S) == 0

    @pytest.mark.native_lacks("early refusal")  # nothing shows that it has sent an answer
    @pytest.mark.parametrize("takes", [False, True])
    def test_waits_for_replies_that_the_client_has_not_taken(self, here: Here, takes: bool) -> None:
        calls = here.server._calls
        here.held.let_go()

        def is_sending() -> bool:
            slow.flush()
            assert not slow.receive()
            return calls.count(SENDING) == 1

        with Connection(here.address, window=0) as slow:
            stream = slow.call(encode_call(PREDICT), message(RED.SerializeToString()))
            wait_until(is_sending)
            if takes:
                drain = spawn(here.drain, WAIT_S)
                wait_until(lambda: here.server._handlers.leaving)
                slow.write(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1000)))
                assert end_of(slow).status == 0
                slow.close()
                assert drain.result(WAIT_S) == 0
            else:
                assert here.drain(0.1) == 1

    def test_counts_running_and_waiting_requests_that_it_cuts(self, model: Model) -> None:
        for _ in range(5):
            with Here(Held(model)) as here:
                requests = [here.occupy(), here.enqueue(), here.enqueue(), here.enqueue()]
                assert here.drain(0.3) == 4
                codes = {request.code() for request in requests}
                assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}

    def test_answers_what_waits_before_it_ends(self, here: Here) -> None:
        requests = [here.occupy(), here.enqueue(), here.enqueue()]
        with ThreadPoolExecutor(1) as thread:
            drained = thread.submit(here.drain, WAIT_S)
            here.held.let_go(2)
            assert [request.result().scores[0].label for request in requests] == ["red"] * 3
            assert drained.result(WAIT_S) == 0

    def test_refuses_what_comes_meanwhile_with_a_reason(self, here: Here) -> None:
        running = here.occupy()
        drained = spawn(here.drain, WAIT_S)
        native = tests.conftest.transport == "native"
        wait_until(lambda: here.server._draining if native else here.server._handlers.leaving)
        refusal = refused(lambda: here.stub.Predict(RED, timeout=WAIT_S))
        assert (refusal.code.name, refusal.info.reason) == ("UNAVAILABLE", "SERVER_LEAVING")
        here.held.let_go()
        assert running.result().scores[0].label == "red"
        assert drained.result(WAIT_S) == 0

    def test_ends_streams_after_the_reply_in_hand(self, here: Here) -> None:
        """The one that waits for its next request at once, the other with its reply."""
        request = inference.ModelInferRequest(model_name="colours")
        request.inputs.add(name="image", datatype="UINT8", shape=(1, 4, 4, 3))
        request.raw_input_contents.append(bytes(48))
        ended = threading.Event()

        def requests() -> Iterator[inference.ModelInferRequest]:
            yield request
            ended.wait(WAIT_S)

        streams = [inference_grpc.GRPCInferenceServiceStub(here.channel).ModelStreamInfer(requests()) for _ in range(2)]
        here.held.let_go()
        replies = [spawn(next, stream) for stream in streams]
        wait_until(lambda: sum(reply.done() for reply in replies) == 1)
        drained = spawn(here.drain, WAIT_S)
        idle, busy = sorted(range(2), key=lambda number: not replies[number].done())
        refusals = [refused(lambda: next(streams[idle]))]
        here.held.let_go()
        assert not replies[busy].result(WAIT_S).error_message
        refusals.append(refused(lambda: next(streams[busy])))
        assert {(one.code.name, one.info.reason) for one in refusals} == {("UNAVAILABLE", "SERVER_LEAVING")}
        assert drained.result(WAIT_S) == 0
        ended.set()

    def test_refuses_what_comes_after(self, here: Here) -> None:
        assert here.drain(1) == 0
        assert refused(lambda: here.stub.Predict(RED, timeout=WAIT_S)).code is grpc.StatusCode.UNAVAILABLE
