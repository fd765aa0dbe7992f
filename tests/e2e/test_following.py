"""A server follows its repository under load: no request is lost or answered with wrong labels."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from evalmode.artifact.publishing import publish
from evalmode.client import CallFailed, Client
from evalmode.wire import open_inference_pb2 as wire
from evalmode.wire import open_inference_pb2_grpc as wire_grpc
from tests.conftest import COLOURS, Server, colour_artifact, encode, plain, serving
from tests.serving.conftest import WAIT_S, wait_until

GERMAN = ("rot", "grün", "blau")
RED = encode(plain("red"))

# Publishes in child processes, each killed after a random time; prints the number of versions.
KILLED_PUBLISHERS = """
import os, random, signal, sys, time
from pathlib import Path
from evalmode.artifact.repository import list_versions
from evalmode.artifact.publishing import publish
repository, artifact, chance = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), random.Random(int(sys.argv[3]))
for _ in range(int(sys.argv[4])):
    child = os.fork()
    if not child:
        publish(repository, "colours", artifact)
        os._exit(0)
    time.sleep(chance.random() * 0.006)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(len(list_versions(repository, "colours")))
"""


def wait_for(client: Client, version: str, model: str = "") -> None:
    """Send requests until this version answers."""
    wait_until(lambda: client.predict(RED, model=model).version == version)


@contextmanager
def constant_load(address: str, labels: dict[str, tuple[str, ...]]) -> Iterator[Callable[[], int]]:
    """Send requests from two threads; check that none failed and that each answer had a label of its version."""
    stop, wrong, answers = threading.Event(), [], []

    def ask() -> None:
        with Client(address) as client:
            while not stop.is_set():
                try:
                    found = client.predict(RED)
                except CallFailed as error:
                    wrong.append(str(error))
                else:
                    answers.append(found.version)
                    if found.label != labels[str(int(found.version) % 2)][0]:
                        wrong.append(f"{found.label} of version {found.version}")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: len(answers)
    finally:
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
    assert answers
    assert wrong == []


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "colours", colour_artifact())
    return tmp_path / "models"


def check(server: Server, service: str) -> str:
    """The health of a service, or the status code of the call."""
    with grpc.insecure_channel(server.address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S
            )
        except grpc.RpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def test_swaps_under_load_lose_no_request_and_mix_no_labels(repository: Path) -> None:
    with serving(repository, "--poll", "0.05") as server, Client(server.address) as client:
        with constant_load(server.address, {"1": COLOURS, "0": GERMAN}):
            for version in range(2, 8):  # benchmarks/soak/hot_swap.py does a thousand
                publish(repository, "colours", colour_artifact(COLOURS if version % 2 else GERMAN))
                wait_for(client, str(version))
        assert client.predict(RED, version="6").label == "rot"  # kept, and pinned by the request
        code, logged = server.stop()
    assert code == 0
    assert "ERROR" not in logged


def test_rollback_serves_the_previous_version(repository: Path, evalmode) -> None:
    publish(repository, "colours", colour_artifact(GERMAN))
    with serving(repository, "--poll", "0.05") as server, Client(server.address) as client:
        wait_for(client, "2")
        with constant_load(server.address, {"1": COLOURS, "0": GERMAN}):
            done = evalmode("rollback", "colours", "--repository", repository)
            kept = repository / "colours/.withdrawn-2"
            said = f"colours/2 is withdrawn and kept in {kept}, the newest is colours/1\n"
            assert (done.returncode, done.stdout) == (0, said)
            wait_for(client, "1")
        server.stop()
    again = evalmode("rollback", "colours", "--repository", repository)
    assert again.returncode == 2
    assert again.stderr.endswith("colours has only version 1: there is no version to roll back to\n")


def test_the_old_version_stays_served_if_the_new_one_is_invalid(repository: Path) -> None:
    with serving(repository, "--poll", "0.05") as server, Client(server.address) as client:
        assert (check(server, "colours"), check(server, "colours/1")) == ("SERVING", "SERVING")
        assert check(server, "colours/2") == "NOT_FOUND"
        publish(repository, "colours", colour_artifact()[:-100])
        wait_until(lambda: check(server, "colours/2") == "NOT_SERVING")
        assert (check(server, ""), check(server, "colours")) == ("SERVING", "SERVING")
        assert client.predict(RED).version == "1"
        with grpc.insecure_channel(server.address) as channel:
            list_models = wire_grpc.GRPCInferenceServiceStub(channel).RepositoryIndex

            def list_versions() -> wire.RepositoryIndexResponse:
                return list_models(wire.RepositoryIndexRequest(), timeout=WAIT_S)

            wait_until(lambda: "not an ONNX file" in list_versions().models[1].reason)
            index = list_versions()
        assert [(one.version, one.state) for one in index.models] == [("1", "READY"), ("2", "UNAVAILABLE")]
        _, logged = server.stop()
    failures = [line for line in logged.splitlines() if "cannot load colours/2" in line]
    assert len(failures) == 1
    assert failures[0].endswith("; colours/1 goes on answering")


def test_a_pinned_version_is_served(repository: Path) -> None:
    publish(repository, "colours", colour_artifact(GERMAN))
    with serving(repository, "--model", "colours@1", "--poll", "0.05") as server, Client(server.address) as client:
        assert client.predict(RED).version == "1"
        with pytest.raises(CallFailed, match="colours/2"):
            client.predict(RED, version="2")


@pytest.mark.parametrize(
    ("pin", "text"),
    [("colours", "use NAME@VERSION"), ("colours@x", "use NAME@VERSION"), ("colours@9", "versions of colours: 1")],
)
def test_an_invalid_pin_is_rejected(repository: Path, evalmode, pin: str, text: str) -> None:
    refused = evalmode("serve", "--repository", repository, "--model", pin, "--port", 0, "--no-metrics")
    assert refused.returncode == 2
    assert text in refused.stderr


def test_a_killed_publisher_leaves_no_incomplete_version(repository: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "next.onnx"
    artifact.write_bytes(colour_artifact())
    seed = random.Random(7).randrange(1000)
    with serving(repository, "--poll", "0.05", "--log-level", "info") as server, Client(server.address) as client:
        with constant_load(server.address, {"1": COLOURS, "0": COLOURS}):
            command = [sys.executable, "-c", KILLED_PUBLISHERS, str(repository), str(artifact), str(seed), "100"]
            versions = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            wait_for(client, str(versions))
        code, logged = server.stop(signal.SIGTERM)
    assert code == 0
    assert "not served" not in logged
    assert 1 < versions < 101  # some were killed before the publication, some after it
    incomplete = [name for name in os.listdir(repository) if name.startswith(".incoming-")]  # noqa: PTH208
    assert incomplete  # some were killed during the publication
