"""grpcio has one polling thread: what waits there for what only it delivers stops the server for good.

A server in this process answers and refuses calls of each kind, and what its polling thread does is watched: locks that
are taken, calls of the system, records of the log. grpcio's own code may do that; ours may not, nor what it calls.
"""

from __future__ import annotations

import concurrent.futures._base
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, FrameType
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from http2 import CHECK, PREDICT, STREAM_INFER

from serving.batching import Batcher
from serving.limits import Limits
from serving.model import Model
from serving.services.access import Access, Tokens
from serving.services.inference import Inference
from serving.services.open_inference import OpenInference
from serving.services.statistics import Statistics
from serving.transports.grpcio import GrpcioServer
from serving.wire import classifier_pb2 as wire
from tests.conftest import encode, plain
from tests.serving.conftest import WAIT_S, Held, classify_by, wait_until

GRPC = str(Path(grpc.__file__).parent) + "/"
SYSTEM = {"posix", "io", "_io", "_socket", "select", "time"}
PYTHONS = {threading.__file__, concurrent.futures._base.__file__, __file__}
HARMLESS = {"urandom", "time", "monotonic", "perf_counter", "time_ns", "fspath"}  # of those: they wait for nothing
WAITS = {"acquire", "acquire_lock", "__enter__", "get", "wait", "join"}  # builtin methods of locks and queues
RED = wire.PredictRequest(image=encode(plain("red"))).SerializeToString()
TOKEN = "0123456789abcdef"
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"),)


class Watch:
    """What the polling thread of a server did."""

    def __init__(self) -> None:
        self.thread = 0
        self.forbidden: set[str] = set()
        self.functions: set[str] = set()

    def profile(self, frame: FrameType, event: str, what: Any) -> None:
        """For ``threading.setprofile``: leaves every thread but the one that serves alone."""
        if not self.thread and threading.current_thread().name.endswith("(_serve)"):
            self.thread = threading.get_ident()
        if threading.get_ident() != self.thread:
            sys.setprofile(None)
        elif event == "call":
            self.see_call(frame)
        elif event == "c_call":
            self.see_builtin(frame, what)

    def see_call(self, frame: FrameType) -> None:
        name = frame.f_code.co_qualname
        if "/serving/" in frame.f_code.co_filename:
            self.functions.add(name)
        if frame.f_code.co_filename == logging.__file__ and name not in ("Logger.isEnabledFor", "Logger.debug"):
            self.note(frame.f_back, f"logging {name}")

    def see_builtin(self, frame: FrameType, function: BuiltinFunctionType) -> None:
        owner = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
        name = function.__name__
        kind = type(getattr(function, "__self__", None)).__name__
        waits = name in WAITS and kind in ("lock", "RLock", "SimpleQueue")
        if waits or (owner in SYSTEM and name not in HARMLESS):
            self.note(frame, f"{owner}.{kind}.{name}")

    def see_lock(self) -> None:
        if threading.get_ident() == self.thread:
            self.note(sys._getframe(2), "a lock")

    def note(self, frame: FrameType | None, what: str) -> None:
        """Unless it is grpcio that does it, through Python's own code or not."""
        while frame is not None and frame.f_code.co_filename in PYTHONS:
            frame = frame.f_back
        if frame is None or not frame.f_code.co_filename.startswith(GRPC):
            where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}" if frame else "?"
            self.forbidden.add(f"{what} in {where}")


def watched(make: Callable[[], Any], watch: Watch) -> Callable[[], Any]:
    """A kind of lock that is seen: ``with`` is no call of a builtin."""

    class Lock:
        def __init__(self) -> None:
            self._lock = make()

        def acquire(self, *arguments: Any, **options: Any) -> bool:
            watch.see_lock()
            return bool(self._lock.acquire(*arguments, **options))

        def __enter__(self) -> bool:
            watch.see_lock()
            return bool(self._lock.acquire())

        def __exit__(self, *_: object) -> None:
            self._lock.release()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._lock, name)

    return Lock


class Scene:
    """A server with locks that are watched, and a client."""

    def __init__(self, model: Model, tokens: Path, limits: Limits) -> None:
        self.held = Held(model)
        self.batcher, statistics = Batcher(1, limits), Statistics()
        ours = classify_by(self.held, batcher=self.batcher, limits=limits)
        theirs = OpenInference(ours._models, Inference(self.batcher, statistics), 1, limits, statistics)
        access = Access(Tokens(tokens), None)
        self.server = GrpcioServer(ours, theirs, self.batcher, statistics, "127.0.0.1:0", limits, access)
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")

    def ask(self, path: str, message: bytes = b"", metadata: Any = AUTHORIZED, timeout: float = WAIT_S) -> grpc.Future:
        return self.channel.unary_unary(path).future(message, metadata=metadata, timeout=timeout)


@pytest.fixture
def watch() -> Iterator[Watch]:
    watching = Watch()
    threading.setprofile(watching.profile)
    try:
        with (
            patch("threading.Lock", watched(threading.Lock, watching)),
            patch("threading.RLock", watched(threading.RLock, watching)),
        ):
            yield watching
    finally:
        threading.setprofile(None)


def test_it_neither_locks_nor_reads_nor_logs_nor_waits(
    watch: Watch, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    caplog.set_level(logging.DEBUG)
    scene = Scene(model, tmp_path / "tokens", Limits(max_queue=1, max_watches=2))
    ask = scene.ask
    # answered, of an unknown method, without a token, and health without one
    scene.held.let_go()
    assert ask(PREDICT, RED).result(WAIT_S)
    scene.held.next_batch()
    assert ask("/evalmode.v1.Classifier/Guess").code().name == "UNIMPLEMENTED"
    assert ask(PREDICT, RED, ()).code().name == "UNAUTHENTICATED"
    assert ask(CHECK, b"", ()).result(WAIT_S)
    # watches that come and go, of which one is too many
    stub = health_pb2_grpc.HealthStub(scene.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
    assert {next(one).status for one in watches} == {1}
    with pytest.raises(grpc.RpcError, match="health watches are open"):
        next(stub.Watch(health_pb2.HealthCheckRequest()))
    scene.server.show([])
    for one in watches:
        one.cancel()
    # a stream that is cancelled, a call that is cancelled while it waits, a full queue, and too short a deadline
    ended = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b""
        ended.wait(WAIT_S)

    stream = scene.channel.stream_stream(STREAM_INFER)(requests(), metadata=AUTHORIZED)
    assert next(stream)
    stream.cancel()
    ended.set()
    running = ask(PREDICT, RED)
    scene.held.next_batch()
    waiting = ask(PREDICT, RED)
    wait_until(lambda: scene.batcher.load().waiting == 1)
    assert ask(PREDICT, RED).code().name == "RESOURCE_EXHAUSTED"
    waiting.cancel()
    wait_until(lambda: scene.batcher.load().in_flight == 1)
    scene.batcher._pressed_until = float("inf")
    scene.batcher.pace.note(60.0, 0)
    assert ask(PREDICT, RED, timeout=5).code().name == "RESOURCE_EXHAUSTED"
    # while threads are scarce
    with patch("serving.transports.arrivals.RESERVED_THREADS", 10**6):
        scene.batcher._pressed_until = 0.0
        scene.held.let_go(10)
        assert running.result(WAIT_S)
        assert ask(PREDICT, RED).result(WAIT_S)
        assert ask(CHECK).result(WAIT_S)
        scene.batcher._pressed_until = float("inf")
        assert ask(PREDICT, RED).result(WAIT_S)
    # and while it leaves
    scene.server.announce_shutdown()
    scene.server._router.leaving = True
    assert ask(PREDICT, RED).code().name == "UNAVAILABLE"
    scene.channel.close()
    scene.server.drain(0)
    assert watch.forbidden == set()
    seen = {name.removeprefix("GrpcioServer._add_unary.<locals>.") for name in watch.functions}
    assert seen >= {"Router.intercept_service", "Access.check", "Router.refuse", "OpenCall._end", "wait", "choose"}
    assert "Threads.submit" in seen


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda path: threading.Lock().__enter__(),
        lambda path: threading.Lock().acquire(),
        lambda path: threading.Event().set(),
        lambda path: path.stat(),
        lambda path: path.read_text(),
        lambda path: logging.getLogger("serving").debug("a call"),
        lambda path: threading.Event().wait(0.001),
    ],
    ids=["with a lock", "acquire", "event", "stat", "read", "log", "wait"],
)
def test_what_it_must_not_do_is_seen(
    watch: Watch, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture, forbidden: Callable[[Path], object]
) -> None:
    """The test above could not fail if this were not so."""
    (tmp_path / "tokens").write_text(TOKEN)
    caplog.set_level(logging.DEBUG)
    check = Access.check

    def careless(access: Access, path: str, authorization: str) -> None:
        forbidden(tmp_path / "tokens")
        check(access, path, authorization)

    with patch.object(Access, "check", careless):
        scene = Scene(model, tmp_path / "tokens", Limits())
        with suppress(grpc.RpcError):
            scene.ask("/evalmode.v1.Classifier/GetModel").result(WAIT_S)
        scene.channel.close()
        scene.server.drain(0)
    assert watch.forbidden
