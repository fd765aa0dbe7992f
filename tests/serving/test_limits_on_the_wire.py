"""Every row of the limits table, set by its option, felt by a client of either protocol: at the limit, and beyond."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from serving.batching import count_cpus
from serving.limits import Limits
from serving.repository import publish
from serving.wire import classifier_pb2, classifier_pb2_grpc
from serving.wire import open_inference_pb2 as inference
from serving.wire import open_inference_pb2_grpc as inference_grpc
from tests.conftest import colour_artifact, encode, plain, serving
from tests.serving.conftest import WAIT_S
from tests.serving.test_grpcio import Refusal, connected, reflect, refusal_of, refused
from tests.serving.test_open_inference import pack

SHUTDOWN = {"grace", "lame_duck"}  # TestShutdown, tests/serving/test_grpcio.py
LOADING = {"load_seconds", "load_bytes"}  # tests/serving/test_trials.py


def predict(channel: grpc.Channel, image: bytes) -> object:
    request = classifier_pb2.PredictRequest(image=image)
    return classifier_pb2_grpc.ClassifierStub(channel).Predict(request, timeout=WAIT_S)


def infer(channel: grpc.Channel, *images: bytes) -> object:
    request = inference.ModelInferRequest(
        inputs=[{"name": "image", "datatype": "BYTES", "shape": [len(images)]}], raw_input_contents=[pack(*images)]
    )
    return inference_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=WAIT_S)


both = pytest.mark.parametrize("send", [predict, infer], ids=["Predict", "ModelInfer"])


def told(refusal: Refusal) -> tuple[str, str, dict[str, str]]:
    return refusal.code.name, refusal.info.reason, dict(refusal.info.metadata)


@both
def test_max_image_bytes(colours: Path, send: Callable[..., object]) -> None:
    image = encode(plain("red"))
    with serving(colours, "--max-image-bytes", len(image)) as server, connected(server.address) as channel:
        send(channel, image)
        refusal = refused(lambda: send(channel, image + b"\0"))
    facts = {"size_bytes": str(len(image) + 1), "limit_bytes": str(len(image))}
    assert told(refusal) == ("INVALID_ARGUMENT", "IMAGE_TOO_LARGE", facts)


@both
def test_max_image_pixels(colours: Path, send: Callable[..., object]) -> None:
    with serving(colours, "--max-image-pixels", 100) as server, connected(server.address) as channel:
        send(channel, encode(plain("red", (10, 10))))
        refusal = refused(lambda: send(channel, encode(plain("red", (10, 11)))))
    assert told(refusal) == ("INVALID_ARGUMENT", "IMAGE_TOO_MANY_PIXELS", {"pixels": "110", "limit_pixels": "100"})


@both
def test_max_decode_bytes(colours: Path, send: Callable[..., object]) -> None:
    with serving(colours, "--max-decode-bytes", 16 * 2**20) as server, connected(server.address) as channel:
        send(channel, encode(plain("red", (1500, 1500))))
        refusal = refused(lambda: send(channel, encode(plain("red", (2500, 2500)))))
    code, reason, facts = told(refusal)
    assert (code, reason, facts["limit_bytes"]) == ("INVALID_ARGUMENT", "IMAGE_NEEDS_TOO_MUCH_MEMORY", str(14 * 2**20))
    assert refusal.retry is None


@both
def test_max_request_bytes(colours: Path, send: Callable[..., object]) -> None:
    with serving(colours, "--max-request-bytes", 1024) as server, connected(server.address) as channel:
        send(channel, encode(plain("red")))
        refusal = refused(lambda: send(channel, bytes(1024)))
        send(channel, encode(plain("red")))
    assert told(refusal) == ("RESOURCE_EXHAUSTED", "", {})  # the transport's own
    assert refusal.retry is None


def test_max_batch(colours: Path) -> None:
    image = encode(plain("red"))
    with serving(colours, "--max-batch", 2) as server, connected(server.address) as channel:
        infer(channel, image, image)
        refusal = refused(lambda: infer(channel, image, image, image))
    assert told(refusal) == ("INVALID_ARGUMENT", "BATCH_TOO_LARGE", {"size_inputs": "3", "limit_inputs": "2"})


def test_max_queue(tmp_path: Path) -> None:
    publish(tmp_path, "colours", colour_artifact(slow_steps=1500))
    request = classifier_pb2.PredictRequest(image=encode(plain("red")))
    places = count_cpus() + 1  # one runs on each, one waits
    with (
        serving(tmp_path, "--allow-uncertified", "--max-queue", 1) as server,
        connected(server.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        asked = [stub.Predict.future(request, timeout=WAIT_S) for _ in range(places + 2)]
        refusals = [refusal_of(one.exception()) for one in asked if one.exception() is not None]
        assert len(asked) - len(refusals) >= places
    assert {told(refusal)[:2] for refusal in refusals} == {("RESOURCE_EXHAUSTED", "QUEUE_FULL")}
    assert all(refusal.retry is not None for refusal in refusals)


def test_max_streams(colours: Path) -> None:
    def list_services(channel: grpc.Channel, hold: list[None]) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            while hold:
                time.sleep(0.01)

        return reflect(channel, "v1", requests())

    with serving(colours, "--max-streams", 1) as server, connected(server.address) as channel:
        hold = [None]
        first = list_services(channel, hold)
        next(first)
        refusal = refused(lambda: next(list_services(channel, [])))
        assert told(refusal) == ("RESOURCE_EXHAUSTED", "STREAMS_FULL", {"limit_streams": "1"})
        assert refusal.retry is not None
        predict(channel, encode(plain("red")))  # streams and requests have threads of their own
        hold.clear()
        assert list(first) == []
        until = time.monotonic() + WAIT_S
        while True:  # the server hears of the end a little later
            try:
                next(list_services(channel, []))
                break
            except grpc.RpcError:
                assert time.monotonic() < until


def test_every_row_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_max_")}
    assert tested | SHUTDOWN | LOADING == {limit.name for limit in fields(Limits)}
