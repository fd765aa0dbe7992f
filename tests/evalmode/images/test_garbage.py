"""Calls leave no traceback in a reference cycle; its frames would keep the message until garbage collection."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import pytest

import tests.conftest
from evalmode.runtime.model import Model
from evalmode.wire import classifier_pb2 as wire
from serving.transports.grpcio import GrpcioServer
from tests.conftest import encode, plain
from tests.serving.conftest import classify_by, listen, wait_until

PREDICT, GET_MODEL = "/evalmode.v1.Classifier/Predict", "/evalmode.v1.Classifier/GetModel"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
IMAGE = wire.PredictRequest(image=encode(plain("red"))).SerializeToString()
PIXELS = wire.PredictRequest(pixels=wire.Pixels(data=b"1", height=3, width=3, channels=3)).SerializeToString()
Ask = Callable[[grpc.Channel], object]
KINDS: dict[str, Ask] = {
    "valid": lambda channel: channel.unary_unary(PREDICT)(IMAGE),
    "no image": lambda channel: channel.unary_unary(PREDICT)(wire.PredictRequest(image=b"no").SerializeToString()),
    "wrong shape": lambda channel: channel.unary_unary(PREDICT)(PIXELS),
    "malformed": lambda channel: channel.unary_unary(PREDICT)(b"\xff\xff"),
    "damaged gzip": lambda channel: channel.unary_unary(PREDICT)(b"\x1f\x8b\x00"),
    "malformed, no prediction": lambda channel: channel.unary_unary(GET_MODEL)(b"\xff\xff"),
    "cancelled": lambda channel: channel.unary_unary(PREDICT).future(IMAGE).cancel(),
    "stream": lambda channel: list(channel.stream_stream(STREAM)(iter([b""]))),
    "malformed in a stream": lambda channel: list(channel.stream_stream(STREAM)(iter([b"\xff\xff"]))),
}


@pytest.fixture
def server(model: Model) -> Iterator[GrpcioServer]:
    server = listen(classify_by(model))
    assert isinstance(server, GrpcioServer)
    yield server
    server.drain(0)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.skipif(
    tests.conftest.transport == "native", reason="pygrpc-native answers these calls; the code behind it is the same"
)
@pytest.mark.parametrize("kind", KINDS)
def test_calls_leave_no_traceback_to_the_garbage_collector(server: GrpcioServer, kind: str, no_collector: None) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for _ in range(20):
            with suppress(grpc.RpcError):
                KINDS[kind](channel)
    wait_until(lambda: not server._calls._open)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    frames = [one.tb_frame.f_globals["__name__"] for one in gc.garbage if isinstance(one, types.TracebackType)]
    assert [name for name in frames if name.startswith("serving.")] == []
