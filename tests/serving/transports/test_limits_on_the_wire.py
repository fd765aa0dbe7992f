"""Every row of the limits table, set by its option and tested by clients of both protocols at and over the limit."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from benchmarks.http2 import CHECK, PREDICT, STREAM_INFER, WATCH, Connection, encode_call, message
from evalmode.artifact.publishing import publish
from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from evalmode.runtime.model import ImageClassifier
from evalmode.wire import classifier_pb2, classifier_pb2_grpc
from evalmode.wire import open_inference_pb2 as inference
from evalmode.wire import open_inference_pb2_grpc as inference_grpc
from tests.conftest import colour_artifact, encode, plain, serving
from tests.serving.conftest import WAIT_S, BlockedModel, wait_until
from tests.serving.services.test_metrics import scrape
from tests.serving.services.test_open_inference import pack
from tests.serving.transports.test_grpcio import (
    LocalServer,
    Refusal,
    connected,
    read_error,
    reflect,
    refused,
    watch_health,
)

SHUTDOWN = {"grace", "lame_duck"}  # TestShutdown, tests/serving/transports/test_grpcio.py
LOADING = {"load_seconds", "load_bytes"}  # tests/serving/test_trials.py


def predict(channel: grpc.Channel, image: bytes, timeout_s: float | None = WAIT_S) -> object:
    request = classifier_pb2.PredictRequest(image=image)
    return classifier_pb2_grpc.ClassifierStub(channel).Predict(request, timeout=timeout_s)


def infer(channel: grpc.Channel, *images: bytes, timeout_s: float | None = WAIT_S) -> object:
    request = inference.ModelInferRequest(
        inputs=[{"name": "image", "datatype": "BYTES", "shape": [len(images)]}], raw_input_contents=[pack(*images)]
    )
    return inference_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=timeout_s)


both = pytest.mark.parametrize("send", [predict, infer], ids=["Predict", "ModelInfer"])


def read_refusal(refusal: Refusal) -> tuple[str, str, dict[str, str]]:
    return refusal.code.name, refusal.info.reason, dict(refusal.info.metadata)


@both
def test_max_image_bytes(colours: Path, send: Callable[..., object]) -> None:
    image = encode(plain("red"))
    with serving(colours, "--max-image-bytes", len(image)) as server, connected(server.address) as channel:
        send(channel, image)
        refusal = refused(lambda: send(channel, image + b"\0"))
    facts = {"size_bytes": str(len(image) + 1), "limit_bytes": str(len(image))}
    assert read_refusal(refusal) == ("INVALID_ARGUMENT", "IMAGE_TOO_LARGE", facts)


@both
def test_max_image_pixels(colours: Path, send: Callable[..., object]) -> None:
    with serving(colours, "--max-image-pixels", 100) as server, connected(server.address) as channel:
        send(channel, encode(plain("red", (10, 10))))
        refusal = refused(lambda: send(channel, encode(plain("red", (10, 11)))))
    assert read_refusal(refusal) == (
        "INVALID_ARGUMENT",
        "IMAGE_TOO_MANY_PIXELS",
        {"pixels": "110", "limit_pixels": "100"},
    )


@both
def test_max_decode_bytes(colours: Path, send: Callable[..., object]) -> None:
    with serving(colours, "--max-decode-bytes", 16 * 2**20) as server, connected(server.address) as channel:
        send(channel, encode(plain("red", (1500, 1500))))
        refusal = refused(lambda: send(channel, encode(plain("red", (2500, 2500)))))
    code, reason, facts = read_refusal(refusal)
    assert (code, reason, facts["limit_bytes"]) == ("INVALID_ARGUMENT", "IMAGE_NEEDS_TOO_MUCH_MEMORY", str(14 * 2**20))
    assert refusal.retry is None


@both
def test_max_request_bytes(colours: Path, send: Callable[..., object]) -> None:
    with serving(colours, "--max-request-bytes", 1024) as server, connected(server.address) as channel:
        send(channel, encode(plain("red")))
        refusal = refused(lambda: send(channel, bytes(1024)))
        send(channel, encode(plain("red")))
    assert read_refusal(refusal) == ("RESOURCE_EXHAUSTED", "", {})  # the transport's own
    assert refusal.retry is None


def test_max_batch(colours: Path) -> None:
    image = encode(plain("red"))
    with serving(colours, "--max-batch", 2) as server, connected(server.address) as channel:
        infer(channel, image, image)
        refusal = refused(lambda: infer(channel, image, image, image))
    assert read_refusal(refusal) == ("INVALID_ARGUMENT", "BATCH_TOO_LARGE", {"size_inputs": "3", "limit_inputs": "2"})


@pytest.mark.parametrize("workers", [1, 2])
def test_max_queue(tmp_path: Path, workers: int) -> None:
    publish(tmp_path, "colours", colour_artifact(slow_steps=1500))
    request = classifier_pb2.PredictRequest(image=encode(plain("red")))
    places = max(workers, count_cpus()) + 1  # one runs on each CPU, at least one in each worker; one waits
    with (
        serving(tmp_path, "--allow-uncertified", "--max-queue", 1, "--workers", workers) as server,
        connected(server.address) as channel,
    ):
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        asked = [stub.Predict.future(request, timeout=WAIT_S) for _ in range(places + 2)]
        wait_until(lambda: any(one.done() for one in asked))
        refusals = [refused(lambda: stub.Predict(request, timeout=WAIT_S))]  # on arrival
        refusals += [read_error(one.exception()) for one in asked if one.exception() is not None]
        counted = scrape(server)("evalmode_requests_total")
        assert sum(count for labels, count in counted.items() if labels[-1] == "QUEUE_FULL") == len(refusals)
        assert len(asked) + 1 - len(refusals) >= places
    assert {read_refusal(refusal)[:2] for refusal in refusals} == {("RESOURCE_EXHAUSTED", "QUEUE_FULL")}
    assert all(refusal.retry is not None for refusal in refusals)


@both
def test_default_deadline(model: ImageClassifier, send: Callable[..., object]) -> None:
    with LocalServer(BlockedModel(model), limits=Limits(default_deadline=1)) as local:
        running = local.occupy()
        refusal = refused(lambda: send(local.channel, encode(plain("red")), timeout_s=None))
        assert read_refusal(refusal)[:2] == ("DEADLINE_EXCEEDED", "DEADLINE_EXPIRED")
        local.blocked.release()
        assert running.result().scores[0].label == "red"


def test_max_streams(colours: Path) -> None:
    may_end = threading.Event()

    def list_services(channel: grpc.Channel) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            may_end.wait(WAIT_S)

        return reflect(channel, "v1", requests())

    def is_accepted(channel: grpc.Channel) -> bool:
        try:
            next(list_services(channel))
        except grpc.RpcError:
            return False
        return True

    with serving(colours, "--max-streams", 1) as server, connected(server.address) as channel:
        first = list_services(channel)
        next(first)
        refusal = refused(lambda: next(list_services(channel)))
        assert read_refusal(refusal) == ("RESOURCE_EXHAUSTED", "STREAMS_FULL", {"limit_streams": "1"})
        assert refusal.retry is not None
        predict(channel, encode(plain("red")))  # streams do not count as requests
        may_end.set()
        assert list(first) == []
        wait_until(lambda: is_accepted(channel))  # the server sees the end a little later


def test_max_watches(colours: Path) -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]  # a connection each
    with (
        serving(colours, "--max-watches", 2) as server,
        grpc.insecure_channel(server.address, own_connection) as one,
        grpc.insecure_channel(server.address, own_connection) as other,
    ):
        watches = [watch_health(one) for _ in range(2)]
        assert [next(watch).status for watch in watches] == [1, 1]
        refusal = refused(lambda: next(watch_health(one)))
        assert read_refusal(refusal) == ("RESOURCE_EXHAUSTED", "WATCHES_FULL", {"limit_watches": "2"})
        assert refusal.retry is not None
        predict(other, encode(plain("red")))


@pytest.mark.native_lacks("connections")
def test_the_oldest_watch_ends_for_one_of_a_connection_with_fewer(colours: Path) -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with (
        serving(colours, "--max-watches", 2) as server,
        grpc.insecure_channel(server.address, own_connection) as one,
        grpc.insecure_channel(server.address, own_connection) as other,
    ):
        watches = []
        for channel in (one, one, other):
            watches.append(watch_health(channel))
            assert next(watches[-1]).status == 1
        refusal = refused(lambda: next(watches[0]))
        assert read_refusal(refusal) == ("RESOURCE_EXHAUSTED", "WATCHES_FULL", {"limit_watches": "2"})
        refusal = refused(lambda: next(watch_health(one)))  # no connection has two more than this one
        assert read_refusal(refusal)[1] == "WATCHES_FULL"


def test_max_connections(colours: Path) -> None:
    with serving(colours, "--max-connections", 2, "--no-metrics") as server:
        connections = [Connection(server.address) for _ in range(2)]
        for one in connections:
            check_health(one)
        silent, busy = connections

        def is_idle_longer() -> bool:
            check_health(busy)
            return read_idle_ms(silent.socket) - read_idle_ms(busy.socket) > 100

        wait_until(is_idle_longer)
        with Connection(server.address) as new:
            check_health(new)
            wait_until(lambda: silent.receive() or not silent.alive)
            check_health(new)
            check_health(busy)
            assert (busy.alive, new.alive) == (True, True)
        silent.close()
        busy.close()


@pytest.mark.parametrize(
    "path", [CHECK, WATCH, pytest.param(PREDICT, marks=pytest.mark.native_lacks("message timeout"))]
)
def test_message_timeout(colours: Path, path: str) -> None:
    """A call without a message, and one with part of a message; a stream may wait between two messages."""
    half = message(classifier_pb2.PredictRequest(image=bytes(1000)).SerializeToString())[:500]
    with serving(colours, "--message-timeout", 1) as server, Connection(server.address) as one:
        stream = one.call(encode_call(STREAM_INFER), None, end=False)
        late = {one.call(encode_call(path), data, end=False) for data in (None, half)}
        ended: dict[int, tuple[int, bool]] = {}

        def all_ended() -> bool:
            one.flush()
            ended.update({call.stream: (call.status, call.details) for call in one.receive()})
            return ended.keys() >= late or not one.alive

        wait_until(all_ended)
        assert set(ended) == late
        assert set(ended.values()) == {(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], True)}
        assert one.open_streams == {stream}
        check_health(one)


@pytest.mark.native_lacks("message timeout")
@pytest.mark.parametrize("path", [CHECK, PREDICT, WATCH])
def test_unread_replies_close_their_connection(colours: Path, path: str) -> None:
    """After --message-timeout, and no other connection: gRPC cannot end such calls alone."""
    request = classifier_pb2.PredictRequest(image=encode(plain("red"))).SerializeToString() if path == PREDICT else b""
    with (
        serving(colours, "--message-timeout", 1) as server,
        Connection(server.address, window=0) as unread,
        Connection(server.address) as idle,
    ):
        stream = idle.call(encode_call(STREAM_INFER), None, end=False)
        unread.call(encode_call(path), message(request))

        def is_closed() -> bool:
            for one in (unread, idle):
                one.flush()
                one.receive()
            return not unread.alive

        wait_until(is_closed)
        check_health(idle)
        assert idle.open_streams == {stream}
        assert "the client did not read a reply within 1 s" in server.logged()


def check_health(one: Connection) -> None:
    """Make a health check and wait for its reply; other calls may end meanwhile."""
    stream = one.call(encode_call(CHECK), message(b""))

    def is_over() -> bool:
        one.flush()
        one.receive()
        return stream not in one.open_streams

    wait_until(is_over)
    assert one.alive


def read_idle_ms(one: socket.socket) -> int:
    """Milliseconds since the socket sent its last data."""
    return struct.unpack_from("=I", one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 44)[0]


def test_every_row_is_tested() -> None:
    tested = {
        name.removeprefix("test_")
        for name in globals()
        if name.startswith(("test_max_", "test_message_", "test_default_"))
    }
    assert tested | SHUTDOWN | LOADING == {limit.name for limit in fields(Limits)}
