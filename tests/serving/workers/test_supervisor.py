"""A server of two workers behaves as one server, and outlives its workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

import tests.conftest
from benchmarks.worker_processes import find_workers
from evalmode.artifact.publishing import publish
from evalmode.wire import classifier_pb2, classifier_pb2_grpc
from evalmode.wire import open_inference_pb2 as wire
from evalmode.wire import open_inference_pb2_grpc as wire_grpc
from tests.conftest import Server, colour_artifact, encode, plain, serving
from tests.serving.conftest import WAIT_S, wait_until

REQUEST = classifier_pb2.PredictRequest(image=encode(plain("red")))
CHANNELS = 12  # all of them reach the same worker in one of 2048 runs
TOKEN = "of-the-operators"
CONTROL = (("authorization", f"Bearer {TOKEN}"),)
APART = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))  # a connection a channel


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    publish(folder, "colours", colour_artifact())
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tokens = tmp_path_factory.mktemp("tokens") / "control"
    tokens.write_text(TOKEN)
    control = ("--enable-control", "--control-tokens", tokens)
    with serving(repository, "--workers", 2, "--poll", 0.1, "--log-format", "json", *control) as running:
        yield running


def read(server: Server, path: str) -> tuple[int, str]:
    """The status and the body of an HTTP response."""
    try:
        with urllib.request.urlopen(f"http://{server.metrics}{path}", timeout=WAIT_S) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def read_metric(server: Server, name: str) -> float:
    """The value of a metric, by its name and labels as the exposition format writes them."""
    _, body = read(server, "/metrics")
    return next((float(line.split()[-1]) for line in body.splitlines() if line.startswith(name + " ")), 0.0)


@contextmanager
def connected(server: Server, count: int = CHANNELS) -> Iterator[list[grpc.Channel]]:
    """Channels with a connection each."""
    channels = [grpc.insecure_channel(server.address, options=APART) for _ in range(count)]
    try:
        yield channels
    finally:
        for channel in channels:
            channel.close()


def list_versions(channels: list[grpc.Channel]) -> set[str]:
    """The versions that answer on these channels."""
    return {classifier_pb2_grpc.ClassifierStub(one).Predict(REQUEST, timeout=WAIT_S).version for one in channels}


@contextmanager
def constant_load(server: Server) -> Iterator[Counter[str]]:
    """Send requests over several connections, one at a time on each; count them by their status codes."""
    stop, codes, lock = threading.Event(), Counter[str](), threading.Lock()

    def ask(channel: grpc.Channel) -> None:
        predict = classifier_pb2_grpc.ClassifierStub(channel).Predict
        while not stop.is_set():
            code = "OK"
            try:
                predict(REQUEST, timeout=WAIT_S)
            except grpc.RpcError as error:
                code = error.code().name
                stop.wait(0.05)
            with lock:
                codes[code] += 1

    with connected(server) as channels:
        threads = [threading.Thread(target=ask, args=(channel,)) for channel in channels]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: codes["OK"] > 4 * CHANNELS)
            yield codes
        finally:
            stop.set()
            for thread in threads:
                thread.join(WAIT_S)


def test_figures_are_those_of_the_whole_server(server: Server) -> None:
    answered = 'evalmode_requests_total{code="OK",model="colours",reason="",version="1"}'
    before = read_metric(server, answered)
    with connected(server) as channels:
        assert list_versions(channels) == {"1"}
        counts = [
            wire_grpc.GRPCInferenceServiceStub(channel)
            .ModelStatistics(wire.ModelStatisticsRequest(), timeout=WAIT_S)
            .model_stats[0]
            .inference_count
            for channel in channels
        ]
    assert set(counts) == {before + CHANNELS}
    assert read_metric(server, answered) == before + CHANNELS
    assert read_metric(server, 'evalmode_workers{state="ready"}') == 2
    assert read_metric(server, "process_resident_memory_bytes") > sum(
        map(measure_memory, find_workers(server.process.pid))
    )


def measure_memory(process: int) -> int:
    """The resident memory of a process, in bytes, less a tenth that it may have gained since a scrape."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") * 9 // 10


def test_a_new_version_reaches_every_worker(server: Server, repository: Path) -> None:
    with connected(server) as channels:
        publish(repository, "colours", colour_artifact(("rot", "grün", "blau")))
        wait_until(lambda: list_versions(channels[:1]) == {"2"})
        wait_until(lambda: list_versions(channels) == {"2"})


def test_loading_and_unloading_by_a_call_reach_every_worker(server: Server) -> None:
    with connected(server) as channels:
        stub = wire_grpc.GRPCInferenceServiceStub(channels[0])
        unload = wire.RepositoryModelUnloadRequest(model_name="colours")
        unload.parameters["version"].string_param = "2"
        stub.RepositoryModelUnload(unload, metadata=CONTROL, timeout=WAIT_S)
        assert list_versions(channels) == {"1"}
        for channel in channels:
            index = wire_grpc.GRPCInferenceServiceStub(channel).RepositoryIndex(
                wire.RepositoryIndexRequest(), timeout=WAIT_S
            )
            assert [(one.version, one.state) for one in index.models] == [("1", "READY"), ("2", "UNAVAILABLE")]
        stub.RepositoryModelLoad(
            wire.RepositoryModelLoadRequest(model_name="colours"), metadata=CONTROL, timeout=WAIT_S
        )
        assert list_versions(channels) == {"2"}
        with pytest.raises(grpc.RpcError, match="unknown"):
            stub.RepositoryModelLoad(
                wire.RepositoryModelLoadRequest(model_name="unknown"), metadata=CONTROL, timeout=WAIT_S
            )


def test_the_supervisor_has_no_library_that_could_end_it(server: Server) -> None:
    processes = (server.process.pid, find_workers(server.process.pid)[0])
    supervisor, worker = (Path(f"/proc/{process}/maps").read_text() for process in processes)
    for library in ("onnxruntime", "cygrpc"):
        assert library not in supervisor
        assert library in worker


def test_another_server_cannot_take_the_port(server: Server, colours: Path) -> None:
    port = server.address.rpartition(":")[2]
    for workers in (1, 2):
        command = [sys.executable, "-m", "evalmode", "serve", "--repository", str(colours), "--port", port]
        options = ["--no-metrics", "--workers", str(workers), "--transport", tests.conftest.transport]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "the port is in use" in done.stderr.splitlines()[-1]


def test_a_killed_worker_takes_its_requests_in_flight_alone_and_is_started_again(server: Server) -> None:
    first, second = find_workers(server.process.pid)
    with connected(server) as channels:
        [version] = list_versions(channels)
    answers = f'evalmode_requests_total{{code="OK",model="colours",reason="",version="{version}"}}'
    with constant_load(server) as codes:
        wait_until(lambda: codes["OK"] > CHANNELS)
        shown = read_metric(server, answers)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: read(server, "/healthz")[0] == 503)
        for path in ("/livez", "/readyz"):  # the other worker answers
            assert read(server, path)[0] == 200
        wait_until(lambda: read(server, "/healthz")[0] == 200)
        answered = codes["OK"]
        wait_until(lambda: codes["OK"] > answered + CHANNELS)
    failed = {code: count for code, count in codes.items() if code != "OK"}
    assert set(failed) <= {"UNAVAILABLE"}
    assert sum(failed.values()) <= 2 * CHANNELS  # one in flight, and one that was sent before the client noticed
    assert second in find_workers(server.process.pid)
    assert len(find_workers(server.process.pid)) == 2
    assert read_metric(server, "evalmode_worker_restarts_total") == 1
    assert read_metric(server, answers) >= shown + CHANNELS  # those of the killed worker are kept
    with connected(server) as channels:
        assert list_versions(channels) == {version}
    records = [json.loads(line) for line in server.logged().splitlines()]
    [error] = [one["message"] for one in records if one["level"] == "ERROR"]
    assert re.fullmatch(r"worker [12] is restarted (now|in 0\.1 s): it ended by SIGKILL", error)
    assert {one.get("worker") for one in records} == {None, 1, 2}


def test_sigterm_answers_every_request_of_every_worker(colours: Path) -> None:
    with serving(colours, "--workers", 2, "--grace", 20) as server:
        workers = find_workers(server.process.pid)
        with constant_load(server) as codes:
            assert read_metric(server, 'evalmode_workers{state="ready"}') == 2  # the supervisor has their figures
            code, logged = server.stop()
        assert code == 0
        assert set(codes) <= {"OK", "UNAVAILABLE"}
        assert f"all requests answered: {codes['OK']}" in logged.splitlines()[-1]
        assert "goaway" not in logged  # of the health check that each worker sends itself
        wait_until(lambda: not any(map(is_running, workers)))


def test_a_server_is_not_ready_while_no_worker_answers(server: Server) -> None:
    def is_not_ready_after_kills() -> bool:
        for worker in find_workers(server.process.pid):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        return read(server, "/readyz") == (503, "no worker is ready\n")

    wait_until(is_not_ready_after_kills)
    wait_until(lambda: read(server, "/readyz") == (200, "ok\n"))
    with connected(server) as channels:
        assert len(list_versions(channels)) == 1


def test_a_server_of_workers_is_not_ready_while_it_drains(colours: Path) -> None:
    with serving(colours, "--workers", 2, "--lame-duck", 20) as server:
        assert read(server, "/readyz") == (200, "ok\n")
        assert read_metric(server, "evalmode_ready") == 1
        server.process.terminate()
        wait_until(lambda: read(server, "/readyz") == (503, "draining\n"))
        assert read_metric(server, "evalmode_ready") == 0
        assert read(server, "/livez")[0] == 200


def test_workers_ignore_the_files_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one.onnx", "two.onnx"):
        (tmp_path / name).write_bytes(colour_artifact())
    monkeypatch.chdir(tmp_path)
    with serving(Path("one.onnx"), "--workers", 2) as running, connected(running) as channels:
        assert list_versions(channels) == {"1"}


def test_workers_end_when_their_supervisor_has_vanished(server: Server) -> None:
    workers = find_workers(server.process.pid)
    server.process.kill()
    wait_until(lambda: not any(map(is_running, workers)))


def is_running(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
