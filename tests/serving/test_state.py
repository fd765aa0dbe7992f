"""Nothing is left behind: every count of the server returns to zero, however a call or a stream ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving.batching import Batcher
from serving.limits import Limits
from serving.model import Model
from serving.pixels import decode_image
from serving.services import tensors
from serving.wire import classifier_pb2, classifier_pb2_grpc
from serving.wire import open_inference_pb2 as wire
from serving.wire import open_inference_pb2_grpc as wire_grpc
from tests.conftest import encode, plain
from tests.serving.conftest import WAIT_S, Held, classify_by, listen

IMAGE = encode(plain("red"))
RED = np.full((1, 4, 4, 3), (255, 0, 0), np.uint8)


@dataclass
class Here:
    """A server in this process on a real socket, whose model runs when it is let go."""

    model: Model
    limits: Limits = field(default_factory=Limits)

    def __enter__(self) -> Here:
        self.held = Held(self.model)
        self.batcher = Batcher(1, self.limits)
        self.server = listen(
            classify_by(self.held, batcher=self.batcher, limits=self.limits), self.batcher, self.limits
        )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.stub = wire_grpc.GRPCInferenceServiceStub(self.channel)
        return self

    def __exit__(self, *_: object) -> None:
        self.held.let_go(1000)
        self.channel.close()
        self.server.drain(0)

    def counts(self) -> tuple[int, int, int, int, int]:
        """Requests and streams of the transport; admitted, waiting and running ones of the batcher."""
        calls, batcher = self.server._calls, self.batcher
        return calls.requests, calls.streams, batcher._admitted, len(batcher._waiting), 1 - batcher._free_slots

    def expect_nothing_left(self) -> None:
        until = time.monotonic() + WAIT_S
        while any(self.counts()) and time.monotonic() < until:
            time.sleep(0.01)
        assert self.counts() == (0, 0, 0, 0, 0)


@dataclass
class Asked:
    """A call, or a stream with one request on it."""

    call: grpc.Call
    read: Callable[[], wire.ModelInferResponse]

    def outcome(self) -> str:
        try:
            return self.read().model_name
        except grpc.RpcError as error:
            return error.code().name


def ask(here: Here, streamed: bool, request: wire.ModelInferRequest, timeout_s: float = WAIT_S) -> Asked:
    if not streamed:
        future = here.stub.ModelInfer.future(request, timeout=timeout_s)
        return Asked(future, future.result)
    more = threading.Event()

    def requests() -> Iterator[wire.ModelInferRequest]:
        yield request
        more.wait(WAIT_S)

    stream = here.stub.ModelStreamInfer(requests(), timeout=timeout_s)

    def read() -> wire.ModelInferResponse:
        answer = next(stream)
        more.set()
        assert list(stream) == []
        return answer.infer_response

    return Asked(stream, read)


def of_pixels() -> wire.ModelInferRequest:
    sent = {"name": "image", "datatype": "UINT8", "shape": RED.shape}
    return wire.ModelInferRequest(inputs=[sent], raw_input_contents=[RED.tobytes()])


def of_an_image() -> wire.ModelInferRequest:
    sent = {"name": "image", "datatype": "BYTES", "shape": [1]}
    return wire.ModelInferRequest(inputs=[sent], raw_input_contents=[len(IMAGE).to_bytes(4, "little") + IMAGE])


@contextmanager
def decoding_held() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Decoding shows that it has begun, and waits to go on."""
    begun, go_on = threading.Event(), threading.Event()

    def decode(*arguments: object) -> np.ndarray:
        begun.set()
        assert go_on.wait(WAIT_S)
        return decode_image(*arguments)

    with patch.object(tensors, "decode_image", decode):
        yield begun, go_on


@pytest.fixture
def here(model: Model) -> Iterator[Here]:
    with Here(model) as running:
        yield running


@pytest.mark.parametrize("streamed", [False, True], ids=["call", "stream"])
class TestNothingIsLeft:
    def test_after_an_answer(self, here: Here, streamed: bool) -> None:
        here.held.let_go()
        assert ask(here, streamed, of_pixels()).outcome() == "colours"
        here.expect_nothing_left()

    def test_after_a_refusal(self, here: Here, streamed: bool) -> None:
        asked = ask(here, streamed, wire.ModelInferRequest(model_name="nobody"))
        assert asked.outcome() == ("nobody" if streamed else "NOT_FOUND")
        here.expect_nothing_left()

    def test_after_a_fault_of_the_server(self, here: Here, streamed: bool) -> None:
        with patch.object(tensors, "_check_names", side_effect=ZeroDivisionError):
            asked = ask(here, streamed, of_pixels())
            assert asked.outcome() == ("" if streamed else "INTERNAL")
        here.expect_nothing_left()

    def test_after_a_deadline_while_waiting(self, here: Here, streamed: bool) -> None:
        running = ask(here, False, of_pixels())
        here.held.next_batch()
        assert ask(here, streamed, of_pixels(), timeout_s=0.3).outcome() == "DEADLINE_EXCEEDED"
        here.held.let_go()
        assert running.outcome() == "colours"
        here.expect_nothing_left()
        assert here.held.entered.empty()

    def test_after_a_deadline_while_running(self, here: Here, streamed: bool) -> None:
        asked = ask(here, streamed, of_pixels(), timeout_s=0.3)
        here.held.next_batch()
        assert asked.outcome() == "DEADLINE_EXCEEDED"
        here.held.let_go()
        here.expect_nothing_left()

    def test_after_being_cancelled_at_once(self, here: Here, streamed: bool) -> None:
        here.held.let_go(100)
        for _ in range(20):
            ask(here, streamed, of_pixels()).call.cancel()
        here.expect_nothing_left()

    def test_after_being_cancelled_while_decoding(self, here: Here, streamed: bool) -> None:
        with decoding_held() as (begun, go_on):
            asked = ask(here, streamed, of_an_image())
            assert begun.wait(WAIT_S)
            asked.call.cancel()
            time.sleep(0.1)  # until the server knows
            go_on.set()
            here.expect_nothing_left()
        assert here.held.entered.empty()

    def test_after_being_cancelled_while_waiting(self, here: Here, streamed: bool) -> None:
        running = ask(here, False, of_pixels())
        here.held.next_batch()
        asked = ask(here, streamed, of_pixels())
        while not here.batcher._waiting:
            time.sleep(0.01)
        asked.call.cancel()
        here.held.let_go()
        assert running.outcome() == "colours"
        here.expect_nothing_left()
        assert here.held.entered.empty()

    def test_after_being_cancelled_while_running(self, here: Here, streamed: bool) -> None:
        asked = ask(here, streamed, of_pixels())
        here.held.next_batch()
        asked.call.cancel()
        here.held.let_go()
        here.expect_nothing_left()

    def test_after_being_cancelled_with_the_answer_on_its_way(self, here: Here, streamed: bool) -> None:
        here.held.let_go(100)
        for _ in range(20):
            asked = ask(here, streamed, of_pixels())
            here.held.next_batch()
            asked.call.cancel()
        here.expect_nothing_left()

    def test_after_the_servers_end(self, here: Here, streamed: bool) -> None:
        asked = ask(here, streamed, of_pixels())
        here.held.next_batch()
        assert here.server.drain(0.1) == 1
        assert asked.outcome() in ("UNAVAILABLE", "CANCELLED")
        here.held.let_go()
        here.expect_nothing_left()


def test_a_drain_waits_for_the_request_of_a_stream(here: Here) -> None:
    asked = ask(here, True, of_pixels())
    here.held.next_batch()
    threading.Timer(0.3, here.held.let_go).start()
    assert here.server.drain(WAIT_S) == 0
    assert next(asked.call).infer_response.model_name == "colours"


class TestStreams:
    def test_of_every_kind_leave_requests_their_threads(self, model: Model) -> None:
        with Here(model, Limits(max_queue=0, max_streams=48)) as here:
            here.held.let_go(1000)
            idle = threading.Event()

            def nothing_yet() -> Iterator[wire.ModelInferRequest]:
                idle.wait(WAIT_S)
                return
                yield

            streams = [here.stub.ModelStreamInfer(nothing_yet(), timeout=WAIT_S) for _ in range(32)]
            reflect = reflection_pb2_grpc.ServerReflectionStub(here.channel).ServerReflectionInfo
            for _ in range(16):
                stream = reflect(_and_then_wait(idle), timeout=WAIT_S)
                assert next(stream).list_services_response.service
                streams.append(stream)
            watch = health_pb2_grpc.HealthStub(here.channel).Watch
            watches = [watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S) for _ in range(64)]
            assert all(next(one).status == health_pb2.HealthCheckResponse.SERVING for one in watches)
            until = time.monotonic() + WAIT_S
            while here.server._calls.streams < 48 and time.monotonic() < until:
                time.sleep(0.01)
            predict = classifier_pb2_grpc.ClassifierStub(here.channel).Predict
            for _ in range(20):
                assert predict(classifier_pb2.PredictRequest(image=IMAGE), timeout=WAIT_S).scores[0].label == "red"
            one_more = here.stub.ModelStreamInfer(iter([of_pixels()]), timeout=WAIT_S)
            with pytest.raises(grpc.RpcError) as refused:
                next(one_more)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "48 streams are open already" in refused.value.details()
            idle.set()
            for one in watches:
                one.cancel()
            here.expect_nothing_left()
            [answer] = here.stub.ModelStreamInfer(iter([of_pixels()]), timeout=WAIT_S)
            assert answer.infer_response.model_name == "colours"


def _and_then_wait(idle: threading.Event) -> Iterator[reflection_pb2.ServerReflectionRequest]:
    yield reflection_pb2.ServerReflectionRequest(list_services="")
    idle.wait(WAIT_S)
