"""No resource leaks: every count of the server returns to zero, however a call or a stream ends."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image

import tests.conftest
from evalmode.images.pixels import decode_by_header
from evalmode.limits import Limits
from evalmode.runtime.model import ImageClassifier
from evalmode.wire import classifier_pb2, classifier_pb2_grpc
from evalmode.wire import open_inference_pb2 as wire
from evalmode.wire import open_inference_pb2_grpc as wire_grpc
from serving.services import inputs
from serving.transports.calls import RECEIVING, RUNNING, SENDING
from tests.conftest import encode, plain
from tests.serving.conftest import (
    WAIT_S,
    BlockedModel,
    classify_by,
    listen,
    make_executor,
    spawn,
    wait_until,
)

IMAGE = encode(plain("red"))
RED = np.full((1, 4, 4, 3), (255, 0, 0), np.uint8)


@dataclass
class LocalServer:
    """A server in this process on a real socket, whose model runs block until they are released."""

    model: ImageClassifier
    limits: Limits = field(default_factory=Limits)

    def __enter__(self) -> LocalServer:
        self.blocked = BlockedModel(self.model)
        self.executor = make_executor(1, self.limits)
        self.server: Any = listen(classify_by(self.blocked, executor=self.executor, limits=self.limits), self.limits)
        self.grpcio: Any = getattr(self.server, "_others", self.server)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.stub = wire_grpc.GRPCInferenceServiceStub(self.channel)
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

    def counts(self) -> tuple[int, ...]:
        """The numbers of calls, streams, requests and resources in use; the fourth counts waiting requests."""
        load, decodes = self.executor.load(), self.executor.decodes
        handlers = self.grpcio._handlers
        return (
            self.grpcio._calls.count(RECEIVING, RUNNING, SENDING),
            handlers.streams.taken,
            load.in_flight,
            load.waiting,
            load.slots_busy,
            decodes.max_bytes - decodes._free_bytes,
            len(getattr(self.server, "_calls", ())) if tests.conftest.transport == "native" else 0,
            handlers._messages._held_bytes,
            handlers._receiver.places.taken,
            handlers._controls.running,
        )

    def expect_nothing_left(self) -> None:
        with suppress(AssertionError):  # the comparison shows the counts
            wait_until(lambda: not any(self.counts()))
        assert self.counts() == (0,) * len(self.counts())

    def wait_until_cancelled(self) -> None:
        """Wait until the server has seen the cancellation of its only call."""
        if tests.conftest.transport == "native" and self.server._calls:
            wait_until(lambda: all(call.is_cancelled for call in self.server._calls.values()))
        else:
            wait_until(lambda: not self.counts()[0])


@dataclass
class SentRequest:
    """A call, or a stream with one request."""

    call: grpc.Call
    read: Callable[[], wire.ModelInferResponse]

    def outcome(self) -> str:
        try:
            return self.read().model_name
        except grpc.RpcError as error:
            return error.code().name


def send_request(
    local: LocalServer, streamed: bool, request: wire.ModelInferRequest, timeout_s: float = WAIT_S
) -> SentRequest:
    if not streamed:
        future = local.stub.ModelInfer.future(request, timeout=timeout_s)
        return SentRequest(future, future.result)
    more = threading.Event()

    def requests() -> Iterator[wire.ModelInferRequest]:
        yield request
        more.wait(WAIT_S)

    stream = local.stub.ModelStreamInfer(requests(), timeout=timeout_s)

    def read() -> wire.ModelInferResponse:
        answer = next(stream)
        more.set()
        assert list(stream) == []
        return answer.infer_response

    return SentRequest(stream, read)


def make_pixel_request(request_id: str = "") -> wire.ModelInferRequest:
    sent = {"name": "image", "datatype": "UINT8", "shape": RED.shape}
    return wire.ModelInferRequest(id=request_id, inputs=[sent], raw_input_contents=[RED.tobytes()])


def make_image_request() -> wire.ModelInferRequest:
    sent = {"name": "image", "datatype": "BYTES", "shape": [1]}
    return wire.ModelInferRequest(inputs=[sent], raw_input_contents=[len(IMAGE).to_bytes(4, "little") + IMAGE])


@contextmanager
def blocked_decoder() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Block the decoder: yields the events of its begin and of its release."""
    begun, go_on = threading.Event(), threading.Event()

    def decode(*arguments: Any) -> np.ndarray:
        begun.set()
        assert go_on.wait(WAIT_S)
        return decode_by_header(*arguments)

    with patch.object(inputs, "decode_requested", decode):
        yield begun, go_on


@pytest.fixture
def local(model: ImageClassifier) -> Iterator[LocalServer]:
    with LocalServer(model) as running:
        yield running


@pytest.mark.parametrize("streamed", [False, True], ids=["call", "stream"])
class TestNoResourceIsLeft:
    def test_after_an_answer(self, local: LocalServer, streamed: bool) -> None:
        local.blocked.release()
        assert send_request(local, streamed, make_pixel_request()).outcome() == "colours"
        local.expect_nothing_left()

    def test_after_a_refusal(self, local: LocalServer, streamed: bool) -> None:
        sent_request = send_request(local, streamed, wire.ModelInferRequest(model_name="nobody"))
        assert sent_request.outcome() == ("nobody" if streamed else "NOT_FOUND")
        local.expect_nothing_left()

    def test_after_a_fault_of_the_server(self, local: LocalServer, streamed: bool) -> None:
        with patch.object(inputs, "_check_names", side_effect=ZeroDivisionError):
            sent_request = send_request(local, streamed, make_pixel_request())
            assert sent_request.outcome() == ("" if streamed else "INTERNAL")
        local.expect_nothing_left()

    def test_after_a_deadline_while_waiting(self, local: LocalServer, streamed: bool) -> None:
        running = send_request(local, streamed, make_pixel_request())
        local.blocked.next_batch()
        outcomes = {"DEADLINE_EXCEEDED", ""} if streamed else {"DEADLINE_EXCEEDED"}  # "": an error on the stream
        assert send_request(local, streamed, make_pixel_request(), timeout_s=0.3).outcome() in outcomes
        local.blocked.release()
        assert running.outcome() == "colours"
        local.expect_nothing_left()
        assert local.blocked.entered.empty()

    def test_after_a_deadline_while_running(self, local: LocalServer, streamed: bool) -> None:
        sent_request = send_request(local, streamed, make_pixel_request(), timeout_s=0.3)
        local.blocked.next_batch()
        assert sent_request.outcome() == "DEADLINE_EXCEEDED"
        local.blocked.release()
        local.expect_nothing_left()

    def test_after_being_cancelled_at_once(self, local: LocalServer, streamed: bool) -> None:
        local.blocked.release(100)
        for _ in range(20):
            send_request(local, streamed, make_pixel_request()).call.cancel()
        local.expect_nothing_left()

    def test_after_being_cancelled_while_decoding(self, local: LocalServer, streamed: bool) -> None:
        with blocked_decoder() as (begun, go_on):
            sent_request = send_request(local, streamed, make_image_request())
            assert begun.wait(WAIT_S)
            sent_request.call.cancel()
            local.wait_until_cancelled()
            go_on.set()
            local.expect_nothing_left()
        assert local.blocked.entered.empty()

    def test_after_being_cancelled_while_waiting(self, local: LocalServer, streamed: bool) -> None:
        running = send_request(local, streamed, make_pixel_request())
        local.blocked.next_batch()
        sent_request = send_request(local, streamed, make_pixel_request())
        wait_until(lambda: local.counts()[3])
        sent_request.call.cancel()
        wait_until(lambda: not local.counts()[3])
        local.blocked.release()
        assert running.outcome() == "colours"
        local.expect_nothing_left()
        assert local.blocked.entered.empty()

    def test_after_being_cancelled_while_running(self, local: LocalServer, streamed: bool) -> None:
        sent_request = send_request(local, streamed, make_pixel_request())
        local.blocked.next_batch()
        sent_request.call.cancel()
        local.blocked.release()
        local.expect_nothing_left()

    def test_after_being_cancelled_with_the_answer_on_its_way(self, local: LocalServer, streamed: bool) -> None:
        local.blocked.release(100)
        for _ in range(20):
            sent_request = send_request(local, streamed, make_pixel_request())
            local.blocked.next_batch()
            sent_request.call.cancel()
        local.expect_nothing_left()

    def test_after_the_servers_end(self, local: LocalServer, streamed: bool) -> None:
        sent_request = send_request(local, streamed, make_pixel_request())
        local.blocked.next_batch()
        assert local.drain(0.1) == 1
        assert sent_request.outcome() in ("UNAVAILABLE", "CANCELLED")
        local.blocked.release()
        local.expect_nothing_left()


def start_drain(local: LocalServer) -> Future[int]:
    """Begin to drain the server, and wait until it refuses new requests."""
    drained = spawn(local.drain, WAIT_S)
    wait_until(lambda: local.grpcio._handlers.leaving)
    return drained


def test_a_drain_waits_for_the_request_of_a_stream(local: LocalServer) -> None:
    sent_request = send_request(local, True, make_pixel_request())
    local.blocked.next_batch()
    drained = start_drain(local)
    local.blocked.release()
    assert drained.result(WAIT_S) == 0
    assert next(sent_request.call).infer_response.model_name == "colours"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_message_is_freed_before_its_network_runs(local: LocalServer, streamed: bool) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8))
    image = encode(noise)
    sent = {"name": "image", "datatype": "BYTES", "shape": [1]}
    request = wire.ModelInferRequest(inputs=[sent], raw_input_contents=[len(image).to_bytes(4, "little") + image])
    name = "ModelStreamInfer" if streamed else "ModelInfer"
    # As a stream of messages, since the client would keep a single one until it is answered.
    method = local.channel.stream_stream(
        f"/inference.GRPCInferenceService/{name}", wire.ModelInferRequest.SerializeToString
    )
    tracemalloc.start()
    try:
        answers = method(iter([request]), timeout=WAIT_S)
        local.blocked.next_batch()
        wait_until(lambda: tracemalloc.get_traced_memory()[0] < len(image) / 2)
    finally:
        tracemalloc.stop()
    local.blocked.release()
    assert len(list(answers)) == 1


def test_the_time_of_a_request_in_a_stream_counts_from_its_own_arrival(model: ImageClassifier) -> None:
    to_send: SimpleQueue[wire.ModelInferRequest | None] = SimpleQueue()
    with LocalServer(model, Limits(default_deadline=1)) as local:
        local.blocked.release(3)
        stream = local.stub.ModelStreamInfer(iter(to_send.get, None), timeout=None)
        for number, timeout_us in enumerate((0, 0, 1_000_000)):
            request = make_pixel_request(str(number))
            if timeout_us:
                request.parameters["timeout"].int64_param = timeout_us
            time.sleep(0.7 * number)  # the last two are sent later than a second after the stream began
            to_send.put(request)
            reply = next(stream)
            assert (reply.error_message, reply.infer_response.id) == ("", str(number))
        to_send.put(None)


def test_a_drain_ends_a_stream_after_its_current_reply(local: LocalServer) -> None:
    more = threading.Event()

    def requests() -> Iterator[wire.ModelInferRequest]:
        for number in range(5):
            yield make_pixel_request(str(number))
        more.wait(WAIT_S)

    stream = local.stub.ModelStreamInfer(requests(), timeout=WAIT_S)
    local.blocked.next_batch()
    drained = start_drain(local)
    local.blocked.release(5)
    assert drained.result(WAIT_S) == 0
    assert next(stream).infer_response.id == "0"
    with pytest.raises(grpc.RpcError) as ended:
        next(stream)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the server is shutting down" in ended.value.details()
    more.set()


def test_a_drain_ends_idle_streams_at_once_with_a_reason(local: LocalServer) -> None:
    local.blocked.release()
    more = threading.Event()

    def requests() -> Iterator[wire.ModelInferRequest]:
        yield make_pixel_request()
        more.wait(WAIT_S)

    stream = local.stub.ModelStreamInfer(requests(), timeout=WAIT_S)
    assert next(stream).infer_response.model_name == "colours"
    assert local.drain(WAIT_S) == 0
    with pytest.raises(grpc.RpcError) as ended:
        next(stream)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the server is shutting down" in ended.value.details()
    more.set()


def test_a_drain_ends_a_stream_whose_client_continues(local: LocalServer) -> None:
    local.blocked.release(1000)
    stop = threading.Event()

    def requests() -> Iterator[wire.ModelInferRequest]:
        while not stop.wait(0.01):
            yield make_pixel_request()

    stream = local.stub.ModelStreamInfer(requests(), timeout=WAIT_S)
    next(stream)
    assert local.drain(WAIT_S) == 0
    stop.set()


class TestHealth:
    """Health never waits for inference."""

    def check(self, local: LocalServer) -> None:
        stub = health_pb2_grpc.HealthStub(local.channel)
        for _ in range(20):
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING

    def test_is_answered_with_full_slots_and_queue(self, model: ImageClassifier) -> None:
        with LocalServer(model, Limits(max_queue=2)) as local:
            sent_request = [send_request(local, False, make_pixel_request()) for _ in range(3)]
            wait_until(lambda: local.counts()[2] == 3)
            self.check(local)
            local.blocked.release(3)
            assert [one.outcome() for one in sent_request] == ["colours"] * 3

    def test_is_answered_with_many_incomplete_calls(self, model: ImageClassifier) -> None:
        with LocalServer(model, Limits(max_queue=0, max_streams=1)) as local:
            send = threading.Event()

            def nothing_yet() -> Iterator[bytes]:
                send.wait(WAIT_S)
                yield make_pixel_request().SerializeToString()

            path = f"/{wire.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/ModelInfer"
            incomplete = [local.channel.stream_unary(path).future(nothing_yet(), timeout=WAIT_S) for _ in range(30)]
            if tests.conftest.transport == "grpcio":  # native does not show that they have arrived
                wait_until(lambda: local.counts()[0] == 30)
            self.check(local)
            send.set()
            local.blocked.release(1000)
            assert "OK" in {one.code().name for one in incomplete}


class TestStreams:
    def test_of_every_kind_do_not_block_requests(self, model: ImageClassifier) -> None:
        with LocalServer(model, Limits(max_queue=0, max_streams=48)) as local:
            local.blocked.release(1000)
            idle = threading.Event()

            def nothing_yet() -> Iterator[wire.ModelInferRequest]:
                idle.wait(WAIT_S)
                return
                yield

            streams = [local.stub.ModelStreamInfer(nothing_yet(), timeout=WAIT_S) for _ in range(32)]
            reflect = reflection_pb2_grpc.ServerReflectionStub(local.channel).ServerReflectionInfo
            for _ in range(16):
                stream = reflect(_and_then_wait(idle), timeout=WAIT_S)
                assert next(stream).list_services_response.service
                streams.append(stream)
            watching = grpc.insecure_channel(f"127.0.0.1:{local.server.port}", [("grpc.use_local_subchannel_pool", 1)])
            watch = health_pb2_grpc.HealthStub(watching).Watch
            watches = [watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S) for _ in range(64)]
            assert all(next(one).status == health_pb2.HealthCheckResponse.SERVING for one in watches)
            wait_until(lambda: local.counts()[1] == 48)
            predict = classifier_pb2_grpc.ClassifierStub(local.channel).Predict
            for _ in range(20):
                assert predict(classifier_pb2.PredictRequest(image=IMAGE), timeout=WAIT_S).scores[0].label == "red"
            one_more = local.stub.ModelStreamInfer(iter([make_pixel_request()]), timeout=WAIT_S)
            with pytest.raises(grpc.RpcError) as refused:
                next(one_more)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "48 streams are open already" in refused.value.details()
            idle.set()
            for one in watches:
                one.cancel()
            local.expect_nothing_left()
            [answer] = local.stub.ModelStreamInfer(iter([make_pixel_request()]), timeout=WAIT_S)
            assert answer.infer_response.model_name == "colours"


def _and_then_wait(idle: threading.Event) -> Iterator[reflection_pb2.ServerReflectionRequest]:
    yield reflection_pb2.ServerReflectionRequest(list_services="")
    idle.wait(WAIT_S)
