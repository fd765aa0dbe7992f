"""Attacks on a server while other clients are answered: short forms of the benchmarks."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.http2 import CHECK, INFER, PREDICT, WATCH, Connection, encode_call, message
from benchmarks.images import WORST
from benchmarks.soak import drains, leaks
from benchmarks.soak.attackers import Attacking
from evalmode.artifact.publishing import publish
from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import classifier_pb2_grpc as wire_grpc
from evalmode.wire import open_inference_pb2 as inference
from tests.conftest import Server, colour_artifact, encode, plain, serving
from tests.serving.conftest import WAIT_S, spawn, wait_until
from tests.serving.services.test_metrics import scrape
from tests.serving.transports.test_grpcio import read_error, refused

MIB = 2**20
RED = wire.PredictRequest(image=encode(plain("red")))
ALONE = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
STREAMS = 100  # calls that a connection may have open


@pytest.fixture(scope="module")
def attacked(colours: Path) -> Iterator[Server]:
    with serving(colours, "--max-request-bytes", MIB) as running:
        yield running
        _, logged = running.stop()
    assert not re.search("ERROR|Traceback", logged)  # no attack causes a fault of the server


def expect_answers(address: str) -> None:
    """Check that calls on a new connection are answered."""
    with grpc.insecure_channel(address, ALONE) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status == 1
        for _ in range(4):
            assert wire_grpc.ClassifierStub(channel).Predict(RED, timeout=WAIT_S).scores[0].label == "red"


@pytest.mark.parametrize(("kind", "count"), [("watches-ordinary", 1500), ("watches-come-and-go", 4000)])
def test_other_clients_are_answered_while_64_clients_open_and_cancel_watches(
    attacked: Server, kind: str, count: int
) -> None:
    with Attacking(kind, attacked.address, limit=count) as attack:

        def is_over() -> bool:
            expect_answers(attacked.address)
            return bool(attack.is_over)

        wait_until(is_over)
    assert attack.counts["watches"] >= count
    expect_answers(attacked.address)


def peak_bytes(server: Server) -> int:
    """The peak resident memory of a server, in bytes."""
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())[0])


@contextmanager
def unfinished(address: str, path: str, connections: int, calls: int, part: bytes | None) -> Iterator[list[Connection]]:
    """Open calls whose message is missing or incomplete, and which the server has received."""
    opened = [Connection(address, obey=False) for _ in range(connections)]

    def is_received(one: Connection) -> bool:
        one.flush()
        one.receive()
        return not one.waiting and len(one.open_streams) <= STREAMS  # the server refuses the others

    try:
        for one in opened:
            for _ in range(calls):
                one.call(encode_call(path), part, end=False)
            wait_until(partial(is_received, one))
        yield opened
    finally:
        for one in opened:
            one.close()


@pytest.mark.parametrize("part", [None, message(bytes(900))[:300]], ids=["headers", "half"])
@pytest.mark.parametrize(("connections", "calls"), [(1, 700), (20, 50)])
def test_unfinished_calls_do_not_block_other_clients(
    attacked: Server, connections: int, calls: int, part: bytes | None
) -> None:
    with unfinished(attacked.address, PREDICT, connections, calls, part):
        for _ in range(8):
            expect_answers(attacked.address)


@pytest.mark.parametrize("path", [CHECK, WATCH])
def test_unfinished_health_checks_and_watches_do_not_block_health_checks(attacked: Server, path: str) -> None:
    with unfinished(attacked.address, path, 10, 40, None):
        for _ in range(8):
            expect_answers(attacked.address)


@pytest.mark.parametrize("path", [PREDICT, INFER, CHECK])
def test_gzip_whose_content_exceeds_the_limit_is_refused(attacked: Server, path: str) -> None:
    with grpc.insecure_channel(attacked.address, ALONE) as channel:
        call = channel.unary_unary(path)
        refusal = refused(lambda: call(bytes(64 * MIB), compression=grpc.Compression.Gzip, timeout=WAIT_S))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in refusal.message
    expect_answers(attacked.address)


@pytest.mark.native_lacks("inflation")
@pytest.mark.parametrize("path", [PREDICT, INFER, CHECK])
def test_gzip_is_decompressed_up_to_the_limit(attacked: Server, path: str) -> None:
    before = peak_bytes(attacked)
    with grpc.insecure_channel(attacked.address, ALONE) as channel:
        call = channel.unary_unary(path)
        refusal = refused(lambda: call(bytes(256 * MIB), compression=grpc.Compression.Gzip, timeout=WAIT_S))
    assert refusal.info.reason == "MESSAGE_TOO_LARGE"
    assert peak_bytes(attacked) - before < 64 * MIB


GARBAGE = b"\xff" + bytes(range(200))


@pytest.mark.parametrize("path", [PREDICT, INFER])
def test_a_malformed_message_is_refused_with_a_reason_and_counted(attacked: Server, path: str) -> None:
    counted = ("", "", "INVALID_ARGUMENT", "MESSAGE_INVALID")
    before = scrape(attacked)("evalmode_requests_total").get(counted, 0)
    with grpc.insecure_channel(attacked.address) as channel:
        for _ in range(3):
            refusal = refused(lambda: channel.unary_unary(path)(GARBAGE, timeout=WAIT_S))
            assert (refusal.code.name, refusal.info.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")
            assert refusal.retry is None
    assert scrape(attacked)("evalmode_requests_total")[counted] == before + 3
    assert "Traceback" not in attacked.logged()


def test_malformed_messages_do_not_leak_memory(attacked: Server) -> None:
    """A reference cycle would keep 18 kB of each until the garbage collector runs."""
    process, block = psutil.Process(attacked.process.pid), encode_call(PREDICT)
    outcomes: Counter[str] = Counter()

    def begin(one: Connection) -> None:
        one.call(block, message(GARBAGE))

    leaks.send(attacked.address, begin, 2000, outcomes)
    before = process.memory_info().rss
    leaks.send(attacked.address, begin, 20_000, outcomes)
    assert process.memory_info().rss - before < 30 * MIB
    assert outcomes == {f"status {grpc.StatusCode.INVALID_ARGUMENT.value[0]}": 22_000}


def test_a_drain_under_load_loses_no_request(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 callers in a closed loop and 2 streams: every request is answered or refused, and every answer arrives."""
    streamed = inference.ModelInferRequest(inputs=[{"name": "image", "datatype": "UINT8", "shape": [1, 4, 4, 3]}])
    streamed.raw_input_contents.append(bytes(48))
    monkeypatch.setattr(drains, "make_request", RED.SerializeToString)
    monkeypatch.setattr(drains, "make_infer_request", streamed.SerializeToString)
    # Refused callers retry at once, so that calls arrive at each moment of the drain.
    for name, number in {"CALLERS": 16, "STREAMS": 2, "CHANNELS": 3, "REFUSED": 30, "PAUSE_S": 0.0}.items():
        monkeypatch.setattr(drains, name, number)
    for _ in range(3):
        with serving(colours, "--lame-duck", 0) as server:
            running: Any = server  # has the attributes that the benchmark uses
            codes, stopped = asyncio.run(drains.load_and_stop(running, 0.3))
            logged = server.logged()
        assert codes["OK"] > 100
        assert {code.removesuffix(drains.STREAM) for code in codes} == {"OK", "UNAVAILABLE"}, codes
        assert codes["UNAVAILABLE" + drains.STREAM] == 2
        assert stopped["exit_code"] == 0
        assert f"all requests answered: {codes['OK']}\n" in logged


def test_overload_with_short_deadlines_is_refused_and_counted(tmp_path: Path) -> None:
    """32 callers whose deadline is shorter than the queue: each call is answered, refused or expires."""
    publish(tmp_path, "slow", colour_artifact(slow_steps=8))
    outcomes: Counter[str] = Counter()

    def call_repeatedly(channel: grpc.Channel) -> None:
        for _ in range(25):
            try:
                wire_grpc.ClassifierStub(channel).Predict(RED, timeout=0.06)
                outcomes["OK"] += 1
            except grpc.RpcError as error:
                refusal = read_error(error)
                code = refusal.code.name
                detail = "" if code == "DEADLINE_EXCEEDED" else f" {refusal.info.reason} {bool(refusal.retry)}"
                outcomes[code + detail] += 1

    full = "RESOURCE_EXHAUSTED QUEUE_FULL True"
    with serving(tmp_path, "--allow-uncertified") as server, grpc.insecure_channel(server.address) as channel:
        wire_grpc.ClassifierStub(channel).Predict(RED, timeout=WAIT_S)
        callers = [spawn(call_repeatedly, channel) for _ in range(32)]
        while not all(one.done() for one in callers):
            ask_health(channel)
        for one in callers:
            one.result(WAIT_S)
        assert outcomes.keys() <= {"OK", "DEADLINE_EXCEEDED", full}
        assert outcomes["OK"] > 0
        assert outcomes[full] > 0
        counted = scrape(server)("evalmode_requests_total")
        refusals = sum(number for labels, number in counted.items() if labels[-1] == "QUEUE_FULL")
        assert refusals >= outcomes[full]  # the deadline of a refused call may have expired first
        wire_grpc.ClassifierStub(channel).Predict(RED, timeout=WAIT_S)


def ask_health(channel: grpc.Channel) -> None:
    assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status == 1


HOSTILE = (
    *("black PNG", "palette PNG with alpha", "giant WebP", "WebP of many frames"),
    *("JPEG of empty scans", "JPEG of as many scans as are allowed", "BMP of line ends", "JPEG cut in half"),
)


def test_hostile_images_do_not_block_other_clients(colours: Path) -> None:
    outcomes: Counter[str] = Counter()

    def send(channel: grpc.Channel, image: bytes) -> None:
        for _ in range(2):
            try:
                wire_grpc.ClassifierStub(channel).Predict(wire.PredictRequest(image=image), timeout=5)
                outcomes["OK"] += 1
            except grpc.RpcError as error:
                outcomes[error.code().name] += 1

    images = [WORST[name](0.5) for name in HOSTILE]
    with serving(colours, "--max-decode-bytes", 64 * MIB) as server, grpc.insecure_channel(server.address) as channel:
        before = peak_bytes(server)
        attackers = [spawn(send, channel, image) for image in images * 3]
        while not all(one.done() for one in attackers):
            expect_answers(server.address)
        for one in attackers:
            one.result(WAIT_S)
        peak, logged = peak_bytes(server) - before, server.logged()
    assert outcomes.keys() <= {"OK", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    assert outcomes["INVALID_ARGUMENT"] >= 12
    assert peak < (64 + 40) * MIB
    assert not re.search("ERROR|Traceback", logged)
