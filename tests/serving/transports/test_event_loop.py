"""All calls share one event loop: blocking waits, file access and long computations run in other threads.

The tests block a slow operation for as long as they need and check that health is answered meanwhile. One test
profiles the thread of the loop: its system calls, its waits and its log records.
"""

from __future__ import annotations

import concurrent.futures
import gzip
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FrameType
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

import tests.conftest
from benchmarks.http2 import CHECK, INFER, PREDICT, STREAM_INFER, WATCH, Connection, encode_call, message
from evalmode.images.pixels import decode_by_header
from evalmode.limits import Limits
from evalmode.runtime.model import ImageClassifier
from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import open_inference_pb2 as inference
from serving.services.access import Access, Tokens
from serving.services.inference import QUICK_BYTES
from serving.transports.connections import Connections
from serving.transports.grpcio import CONTROL_THREADS
from serving.transports.loop import Loop
from serving.transports.messages import Messages
from serving.transports.pacing import LARGE_BYTES
from tests.conftest import encode, plain
from tests.serving.conftest import WAIT_S, BlockedModel, spawn, wait_until
from tests.serving.transports.test_grpcio import (
    AUTHORIZED,
    RED,
    SERVING,
    TOKEN,
    LocalServer,
    block_handlers,
    check_health,
    fallback,
    refused,
    watch_health,
)

GET_MODEL = "/evalmode.v1.Classifier/GetModel"
STATISTICS = "/inference.GRPCInferenceService/ModelStatistics"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
PIXELS = wire.PredictRequest(pixels=wire.Pixels(data=bytes(48), height=4, width=4, channels=3))


@pytest.fixture
def local(model: ImageClassifier) -> Iterator[LocalServer]:
    with LocalServer(BlockedModel(model)) as running:
        yield running


def check_often(local: LocalServer) -> None:
    """Check that health is answered on an open connection and on a new one."""
    for _ in range(5):
        assert check_health(local.channel, "") == SERVING
    with grpc.insecure_channel(local.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert check_health(channel, "") == SERVING


class TestHealthIsAnswered:
    def test_while_the_lock_of_the_statistics_is_held(self, model: ImageClassifier) -> None:
        with LocalServer(BlockedModel(model), limits=Limits(max_queue=0)) as local:
            watch = watch_health(local.channel, "new")
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            with local.statistics.lock:
                local.blocked.release()
                counted = local.occupy()
                statistics = local.channel.unary_unary(STATISTICS).future(b"", timeout=WAIT_S)
                if tests.conftest.transport == "grpcio":  # native counts refusals in the thread of a slot
                    refusal = refused(lambda: local.stub.Predict(RED, timeout=WAIT_S))
                    assert refusal.info.reason == "QUEUE_FULL"
                check_often(local)
                fallback(local.server)._health.set({"new": True})
                assert next(watch).status == SERVING
                assert not counted.done()
                assert not statistics.done()
            assert counted.result().scores[0].label == "red"
            assert statistics.result()
            watch.cancel()

    def test_while_the_token_file_is_on_a_mount_that_hangs(self, model: ImageClassifier, tmp_path: Path) -> None:
        tokens = tmp_path / "tokens"
        tokens.write_text(TOKEN)
        access = Access(Tokens(tokens), None)
        tokens.unlink()
        os.mkfifo(tokens)  # reads of it block
        with patch("serving.watching.POLL_S", 0.01), LocalServer(BlockedModel(model), access=access) as local:
            local.blocked.release(2)
            access.follow()
            writers: list[int] = []

            def is_read() -> bool:
                with suppress(OSError):  # the pipe has no reader yet
                    writers.append(os.open(tokens, os.O_WRONLY | os.O_NONBLOCK))
                return bool(writers)

            wait_until(is_read)
            check_often(local)
            assert local.stub.Predict(RED, timeout=WAIT_S, metadata=AUTHORIZED).scores[0].label == "red"
            assert local.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S, metadata=AUTHORIZED).model == "colours"
            assert refused(lambda: local.stub.Predict(RED, timeout=WAIT_S)).info.reason == "TOKEN_INVALID"
            os.write(writers[0], TOKEN.encode())
            os.close(writers[0])

    def test_while_every_thread_of_other_calls_is_busy(self, local: LocalServer) -> None:
        with block_handlers(local) as slow:
            calls = [local.stub.GetModel.future(wire.GetModelRequest(), timeout=WAIT_S) for _ in range(30)]
            wait_until(lambda: slow.running == CONTROL_THREADS)
            check_often(local)
            local.blocked.release()
            assert local.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
            assert not any(call.done() for call in calls)
            slow.may_continue.set()
            assert {call.result().model for call in calls} == {"colours"}

    def test_while_every_slot_decodes(self, local: LocalServer) -> None:
        decoding, go_on = threading.Semaphore(0), threading.Event()

        def decode(*arguments: Any) -> np.ndarray:
            decoding.release()
            assert go_on.wait(WAIT_S)
            return decode_by_header(*arguments)

        with patch("serving.services.classifier.decode_requested", decode):
            calls = [local.stub.Predict.future(RED, timeout=WAIT_S) for _ in range(10)]
            assert decoding.acquire(timeout=WAIT_S)
            check_often(local)
            local.blocked.release(20)
            assert not any(call.done() for call in calls)
            go_on.set()
            assert {call.result().scores[0].label for call in calls} == {"red"}

    def test_while_slots_run_and_the_queue_is_full(self, model: ImageClassifier) -> None:
        with LocalServer(BlockedModel(model), limits=Limits(max_queue=2)) as local:
            calls = [local.occupy(), local.enqueue(), local.enqueue()]
            check_often(local)
            local.blocked.release(3)
            assert {call.result().scores[0].label for call in calls} == {"red"}

    def test_while_calls_wait_for_their_messages(self, local: LocalServer) -> None:
        send = threading.Event()

        def nothing_yet() -> Iterator[bytes]:
            send.wait(WAIT_S)
            return
            yield

        calls = [local.channel.stream_unary(CHECK).future(nothing_yet(), timeout=WAIT_S) for _ in range(50)]
        wait_until(lambda: fallback(local.server)._calls.count("receiving") == 50)
        check_often(local)
        send.set()
        assert {call.code().name for call in calls} == {"INVALID_ARGUMENT"}

    @pytest.mark.native_lacks("message timeout")
    def test_while_connections_are_closed(self, model: ImageClassifier) -> None:
        closing: list[str] = []
        go_on, close = threading.Event(), Connections.close

        def close_slowly(connections: Connections, reasons: Mapping[str, str]) -> None:
            closing.append(threading.current_thread().name)
            assert go_on.wait(WAIT_S)
            close(connections, reasons)

        with (
            LocalServer(BlockedModel(model), limits=Limits(message_timeout=1)) as local,
            patch.object(Connections, "close", close_slowly),
            Connection(local.address, window=0) as slow,
        ):
            local.blocked.release(2)

            def is_closed() -> bool:
                slow.flush()
                slow.receive()
                return not slow.alive

            slow.call(encode_call(PREDICT), message(RED.SerializeToString()))
            wait_until(lambda: is_closed() or closing)
            assert "event-loop-0" not in closing
            check_often(local)
            assert local.stub.Predict(RED, timeout=WAIT_S).scores[0].label == "red"
            assert not is_closed()
            assert len(closing) == 1  # the next check waits for this one
            go_on.set()
            wait_until(is_closed)

    def test_while_watches_are_opened_and_cancelled(self, local: LocalServer) -> None:
        handlers, stop, opened = fallback(local.server)._handlers, threading.Event(), []

        def open_and_cancel() -> None:
            with grpc.insecure_channel(local.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                while not stop.is_set():
                    watches = [watch_health(channel) for _ in range(40)]
                    for watch in watches:
                        with suppress(grpc.RpcError):  # over the limit
                            assert next(watch).status == SERVING
                        watch.cancel()
                    opened.extend(watches)

        clients = [spawn(open_and_cancel) for _ in range(4)]

        def check_once() -> bool:
            check_often(local)
            local.server.show([])
            return len(opened) > 400

        wait_until(check_once)
        stop.set()
        for client in clients:
            client.result(WAIT_S)
        wait_until(lambda: not handlers._watches.taken)
        wait_until(lambda: not fallback(local.server)._health._wakes)


def test_a_watch_over_the_limit_is_refused_and_the_others_continue(model: ImageClassifier) -> None:
    with LocalServer(BlockedModel(model), limits=Limits(max_watches=3)) as local:
        watches = [watch_health(local.channel, "new") for _ in range(3)]
        assert {next(watch).status for watch in watches} == {health_pb2.HealthCheckResponse.SERVICE_UNKNOWN}
        refusal = refused(lambda: next(watch_health(local.channel)))
        assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "WATCHES_FULL")
        assert dict(refusal.info.metadata) == {"limit_watches": "3"}
        check_often(local)
        fallback(local.server)._health.set({"new": True})
        assert {next(watch).status for watch in watches} == {SERVING}
        for watch in watches:
            watch.cancel()


def stream_infer(message: bytes) -> Callable[[grpc.Channel], object]:
    return lambda channel: list(channel.stream_stream(STREAM_INFER)(iter([message]), timeout=WAIT_S))


def call(path: str, message: bytes, compression: grpc.Compression | None = None) -> Callable[[grpc.Channel], object]:
    return lambda channel: channel.unary_unary(path)(message, timeout=WAIT_S, compression=compression)


LARGE = wire.PredictRequest(pixels=wire.Pixels(data=bytes(2 * QUICK_BYTES), height=4, width=4, channels=3))
UNKNOWN = inference.ModelInferRequest(model_name="unknown", id="x" * 2 * QUICK_BYTES)


class TestMessages:
    @pytest.mark.native_lacks("inflation")
    @pytest.mark.parametrize(
        ("ask", "thread"),
        [
            (call(PREDICT, PIXELS.SerializeToString()), "event-loop-0"),
            (call(PREDICT, LARGE.SerializeToString()), "slot"),
            (call(PREDICT, PIXELS.SerializeToString(), grpc.Compression.Gzip), "large"),
            (call(INFER, UNKNOWN.SerializeToString()), "slot"),
            (stream_infer(UNKNOWN.SerializeToString()), "slot"),
            (call(GET_MODEL, b""), "control"),
        ],
        ids=["small", "large", "compressed", "ModelInfer", "stream", "GetModel"],
    )
    def test_that_are_large_or_compressed_are_parsed_in_other_threads(
        self, local: LocalServer, ask: Callable[[grpc.Channel], object], thread: str
    ) -> None:
        threads: list[str] = []
        parse = Messages.parse

        def watched(*arguments: Any) -> Any:
            threads.append(threading.current_thread().name)
            return parse(*arguments)

        local.blocked.release()
        with patch.object(Messages, "parse", watched), suppress(grpc.RpcError):
            ask(local.channel)
        assert len(threads) == 1
        assert threads[0].startswith(thread)

    @pytest.mark.native_lacks("inflation")
    @pytest.mark.parametrize("path", [CHECK, WATCH, REFLECT])
    @pytest.mark.parametrize("compressed", [False, True])
    def test_that_are_parsed_in_the_loop_have_a_small_limit(
        self, local: LocalServer, path: str, compressed: bool
    ) -> None:
        message = health_pb2.HealthCheckRequest(service="x" * QUICK_BYTES).SerializeToString()
        compression = grpc.Compression.Gzip if compressed else None
        method = local.channel.stream_stream(path)
        refusal = refused(lambda: next(method(iter([message]), timeout=WAIT_S, compression=compression)))
        assert (refusal.code.name, refusal.info.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
        assert dict(refusal.info.metadata) == {"limit_bytes": str(QUICK_BYTES)}

    @pytest.mark.native_lacks("pauses")
    def test_that_are_large_do_not_delay_other_calls(self, local: LocalServer) -> None:
        large = inference.ModelInferRequest(model_name="unknown", id="x" * LARGE_BYTES)
        with patch.multiple("serving.transports.pacing", BYTES_PER_S=1, MAX_WAIT_S=WAIT_S):
            for _ in range(2):  # the first is not delayed, and the third waits for the second
                with pytest.raises(grpc.RpcError):
                    local.channel.unary_unary(INFER)(large.SerializeToString(), timeout=WAIT_S)
            third = local.channel.unary_unary(INFER).future(large.SerializeToString(), timeout=WAIT_S)
            check_often(local)
            with grpc.insecure_channel(local.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                assert refused(lambda: call(INFER, UNKNOWN.SerializeToString())(channel)).info.reason
            assert not third.done()
            third.cancel()

    def test_of_health_checks_are_accepted_when_the_memory_for_messages_is_full(self, local: LocalServer) -> None:
        messages = fallback(local.server)._handlers._messages
        messages.hold(bytes(messages._limit_bytes))
        assert refused(lambda: check_health(local.channel, "unknown")).info.reason == "SERVICE_UNKNOWN"
        assert check_health(local.channel, "evalmode.v1.Classifier") == SERVING


def test_images_are_decoded_and_replies_made_in_other_threads(local: LocalServer) -> None:
    threads: dict[str, set[str]] = defaultdict(set)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            threads[function.__name__].add(threading.current_thread().name)
            return function(*arguments)

        return call

    local.blocked.release(3)
    with (
        patch("serving.services.classifier.decode_requested", watched(decode_by_header)),
        patch.object(local.blocked, "rank", watched(local.blocked.rank)),
    ):
        for colour in ("red", "lime", "blue"):
            assert local.stub.Predict(wire.PredictRequest(image=encode(plain(colour))), timeout=WAIT_S).scores
    assert set(threads) == {"decode_by_header", "rank"}
    assert not any(name == "event-loop-0" for names in threads.values() for name in names)


class TestLoop:
    @pytest.fixture
    def loop(self) -> Iterator[Loop]:
        made = Loop()
        yield made
        if not made.asyncio.is_closed():
            made.close()

    def test_calls_posted_functions_in_the_order_of_each_thread(self, loop: Loop) -> None:
        called: dict[int, list[int]] = defaultdict(list)
        threads = set()

        def note(poster: int, number: int) -> None:
            threads.add(threading.current_thread().name)
            called[poster].append(number)

        def post(poster: int) -> None:
            for number in range(2000):
                loop.post(partial(note, poster, number))

        for future in [spawn(post, poster) for poster in range(4)]:
            future.result(WAIT_S)
        wait_until(lambda: sum(map(len, called.values())) == 8000)
        assert dict(called) == {poster: list(range(2000)) for poster in range(4)}
        assert threads == {"event-loop-0"}

    def test_calls_a_delayed_function_after_its_delay(self, loop: Loop) -> None:
        called: list[float] = []
        started = time.monotonic()
        loop.later(0.1, lambda: called.append(time.monotonic()))
        wait_until(lambda: called)
        assert called[0] - started > 0.09

    def test_is_behind_while_a_function_blocks_it(self, loop: Loop) -> None:
        wait_until(lambda: not loop.is_behind())
        holding, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            holding.set()
            go_on.wait(WAIT_S)

        loop.post(hold)
        assert holding.wait(WAIT_S)
        loop.is_behind()
        assert [loop.is_behind() for _ in range(3)] == [True] * 3
        go_on.set()
        wait_until(lambda: not loop.is_behind())

    def test_ignores_posts_after_its_end(self, loop: Loop) -> None:
        loop.close()
        for _ in range(2):
            loop.post(lambda: pytest.fail("called"))
        loop.later(0, lambda: pytest.fail("called"))


GRPC = str(Path(grpc.__file__).parent) + "/"
SYSTEM = {"posix", "io", "_io", "_socket", "select", "time"}
PYTHONS = {threading.__file__, concurrent.futures._base.__file__, __file__}
HARMLESS = {
    "urandom",
    "time",
    "monotonic",
    "perf_counter",
    "time_ns",
    "fspath",
}  # exceptions of SYSTEM: they do not block
WAITS = {"acquire", "acquire_lock", "get", "wait", "join"}  # builtin methods of locks and queues


class LoopProfile:
    """Records the activity of the thread of an event loop."""

    def __init__(self) -> None:
        self.forbidden: set[str] = set()
        self.functions: set[str] = set()

    def profile(self, frame: FrameType, event: str, what: Any) -> None:
        """A function for ``threading.setprofile`` that profiles the thread of the loop alone."""
        if threading.current_thread().name != "event-loop-0":
            sys.setprofile(None)
        elif event == "call":
            self.record_call(frame)
        elif event == "c_call":
            self.record_builtin(frame, what)

    def record_call(self, frame: FrameType) -> None:
        name = frame.f_code.co_qualname
        if "/serving/" in frame.f_code.co_filename:
            self.functions.add(name)
        if frame.f_code.co_filename == logging.__file__ and name not in ("Logger.isEnabledFor", "Logger.debug"):
            self.note(frame.f_back, f"logging {name}")

    def record_builtin(self, frame: FrameType, function: BuiltinFunctionType) -> None:
        owner = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
        name = function.__name__
        kind = type(getattr(function, "__self__", None)).__name__
        waits = name in WAITS and kind in ("lock", "RLock", "SimpleQueue")
        if waits or (owner in SYSTEM and name not in HARMLESS):
            self.note(frame, f"{owner}.{kind}.{name}")

    def note(self, frame: FrameType | None, what: str) -> None:
        """Record a forbidden operation, unless grpcio causes it."""
        while frame is not None and frame.f_code.co_filename in PYTHONS:
            frame = frame.f_back
        if frame is None or not frame.f_code.co_filename.startswith(GRPC):
            where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}" if frame else "?"
            self.forbidden.add(f"{what} in {where}")


@contextmanager
def watched_loop(model: ImageClassifier, tokens: Path, limits: Limits) -> Iterator[tuple[LoopProfile, LocalServer]]:
    """A server that requires tokens, and the profile of its event loop."""
    tokens.write_text(TOKEN)
    with LocalServer(BlockedModel(model)):
        pass  # once in a process, grpcio opens a pair of sockets in the thread of a loop
    for name in (*logging.root.manager.loggerDict, "asyncio"):
        logging.getLogger(name).isEnabledFor(logging.DEBUG)  # takes a lock once for each logger and level
    profile = LoopProfile()
    threading.setprofile(profile.profile)
    try:
        with LocalServer(BlockedModel(model), limits=limits, access=Access(Tokens(tokens), None)) as local:
            threading.setprofile(None)  # the thread of the loop keeps its profile
            yield profile, local
    finally:
        threading.setprofile(None)


def call_with_token(
    local: LocalServer, path: str, message: bytes = b"", metadata: Any = AUTHORIZED, timeout_s: float = WAIT_S
) -> grpc.Future:
    return local.channel.unary_unary(path).future(message, metadata=metadata, timeout=timeout_s)


def make_single_calls(local: LocalServer) -> None:
    """Answered calls, an unknown method, a call without a token, an unknown model, a damaged message, and health."""
    red = RED.SerializeToString()
    local.blocked.release()
    assert call_with_token(local, PREDICT, red).result(WAIT_S)
    local.blocked.next_batch()
    assert call_with_token(local, GET_MODEL).result(WAIT_S)
    assert call_with_token(local, "/evalmode.v1.Classifier/Guess").code().name == "UNIMPLEMENTED"
    assert call_with_token(local, PREDICT, red, ()).code().name == "UNAUTHENTICATED"
    assert call_with_token(local, INFER, UNKNOWN.SerializeToString()).code().name == "NOT_FOUND"
    assert call_with_token(local, PREDICT, gzip.compress(red)[:-9]).code().name == "INVALID_ARGUMENT"
    assert call_with_token(local, CHECK, b"", ()).result(WAIT_S)


def open_watches(local: LocalServer) -> None:
    """As many watches as the limit allows, one more, a change of the models, and cancellations."""
    watches = [watch_health(local.channel) for _ in range(2)]
    assert {next(one).status for one in watches} == {SERVING}
    with pytest.raises(grpc.RpcError, match="health watches are open"):
        next(watch_health(local.channel))
    local.server.show([])
    for one in watches:
        one.cancel()


def cancel_a_stream(local: LocalServer) -> None:
    ended = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b""
        ended.wait(WAIT_S)

    stream = local.channel.stream_stream(STREAM_INFER)(requests(), metadata=AUTHORIZED, timeout=WAIT_S)
    assert next(stream)
    stream.cancel()
    ended.set()


def fill_the_queue(local: LocalServer) -> None:
    """A call that is cancelled while it waits, a full queue, and a deadline that is too short."""
    red = RED.SerializeToString()
    running = call_with_token(local, PREDICT, red)
    local.blocked.next_batch()
    waiting = call_with_token(local, PREDICT, red)
    wait_until(local.count_queued)
    if tests.conftest.transport == "grpcio":  # native refuses in the thread of a slot
        assert call_with_token(local, PREDICT, red).code().name == "RESOURCE_EXHAUSTED"
    waiting.cancel()
    wait_until(lambda: not local.count_queued())
    next(iter(local.executor._scheduler._served.values())).pace.note(60.0, 0)
    if tests.conftest.transport == "grpcio":
        assert call_with_token(local, PREDICT, red, timeout_s=5).code().name == "RESOURCE_EXHAUSTED"
    local.blocked.release(10)
    assert running.result(WAIT_S)


def shut_down(local: LocalServer) -> None:
    local.server.announce_shutdown()
    fallback(local.server)._handlers.leaving = True
    assert call_with_token(local, GET_MODEL).code().name == "UNAVAILABLE"
    local.channel.close()
    local.drain(0)


def test_the_loop_neither_reads_files_nor_logs_nor_waits(model: ImageClassifier, tmp_path: Path) -> None:
    with watched_loop(model, tmp_path / "tokens", Limits(max_queue=1, max_watches=2)) as (profile, local):
        make_single_calls(local)
        open_watches(local)
        cancel_a_stream(local)
        fill_the_queue(local)
        shut_down(local)
    assert profile.forbidden == set()
    assert profile.functions >= {
        "Access.check",
        "Places.enter",
        "Calls.open",
        "Health.check",
        "refuse",
        "Loop._call_posted",
    }
    if tests.conftest.transport == "grpcio":  # native runs these elsewhere
        assert profile.functions >= {"Work.withdraw", "Executor.check", "Handlers._refuse_excess"}


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda path: path.stat(),
        lambda path: path.read_text(),
        lambda path: time.sleep(0.001),
        lambda path: logging.getLogger("serving").info("a call"),
        lambda path: threading.Event().wait(0.001),
        lambda path: concurrent.futures.Future().result(0.001),
    ],
    ids=["stat", "read", "sleep", "log", "wait", "future"],
)
def test_forbidden_operations_are_detected(
    model: ImageClassifier, tmp_path: Path, forbidden: Callable[[Path], object]
) -> None:
    """Shows that the test above can fail."""
    check = Access.check

    def careless(access: Access, path: str, authorization: str) -> None:
        with suppress(TimeoutError):
            forbidden(tmp_path / "tokens")
        check(access, path, authorization)

    with (
        patch.object(Access, "check", careless),
        watched_loop(model, tmp_path / "tokens", Limits()) as (profile, local),
    ):
        assert local.stub.GetModel(wire.GetModelRequest(), timeout=WAIT_S, metadata=AUTHORIZED)
    assert profile.forbidden
