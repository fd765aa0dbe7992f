"""``evalmode bench`` against real servers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from evalmode.artifact.publishing import publish
from evalmode.bench.load import Measured, Sender, describe
from evalmode.bench.usage import find_server
from evalmode.wire import classifier_pb2 as wire
from tests.conftest import colour_artifact, encode, plain, serving


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path, "colours", colour_artifact())
    return tmp_path


def bench(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evalmode", "bench", *map(str, options), "--seconds", "0.5"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_closed_loop_reports_its_rate_relative_to_onnxruntime(repository: Path) -> None:
    file = repository / "colours" / "1" / "model.onnx"
    with serving(repository) as server:
        done = bench(server.address, "--in-flight", "1,4", "--file", file, "--json")
        shown = bench(server.address, "--in-flight", "2")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == "colours/1"
    assert report["request_bytes"] > len(plain("red").tobytes())  # raw pixels of the size of the model
    assert [row["load"] for row in report["loads"]] == ["1 in flight", "4 in flight"]
    for row in report["loads"]:
        assert set(row["outcomes"]) == {"OK"}
        assert row["outcomes"]["OK"] > 10
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["client_cpu_us"] > 0
        assert row["server_cpu_us"] > 0
        assert row["server_memory_bytes"] > 20e6
        assert row["of_raw"] == pytest.approx(row["rate"] / report["raw"]["rate"], abs=0.0006)
    assert shown.stdout.splitlines()[0].startswith("colours/1 at ")
    assert "2 in flight" in shown.stdout


def test_a_constant_rate_is_independent_of_the_latency(repository: Path, tmp_path: Path) -> None:
    image = tmp_path / "red.png"
    image.write_bytes(encode(plain("red")))
    with serving(repository) as server:
        done = bench(server.address, "--rate", "40", "--image", image, "--json")
    [row] = json.loads(done.stdout)["loads"]
    assert row["load"] == "40/s"
    assert row["outcomes"] == {"OK": 20}
    assert row["rate"] <= 20 / (19 / 40)  # the last request is sent 19/40 s after the first


def test_latency_is_measured_from_the_scheduled_time(repository: Path) -> None:
    async def ask_late(address: str) -> list[float]:
        async with grpc.aio.insecure_channel(address) as channel:
            sender = Sender(channel, wire.PredictRequest(image=encode(plain("red"))).SerializeToString(), 60)
            await sender.send(due=time.perf_counter() - 5)
            return sender.latencies

    with serving(repository) as server:
        [latency_ms] = asyncio.run(ask_late(server.address))
    assert latency_ms >= 5000


def test_figures_without_answers_are_valid_json() -> None:
    figures = describe(Measured(1.0, {"UNAVAILABLE": 3}, np.array([]), 0.0))
    assert json.loads(json.dumps(figures, allow_nan=False))["p99_ms"] is None


def test_a_remote_server_is_not_mistaken_for_a_local_process(repository: Path) -> None:
    with serving(repository) as server:
        port = server.address.rpartition(":")[2]
        assert [found.pid for found in find_server(server.address)] == [server.process.pid]
        for address in (f"198.51.100.7:{port}", f"example.org:{port}", "unix:/nowhere", "localhost"):
            assert find_server(address) == []


def test_the_processor_time_of_all_workers_counts(repository: Path) -> None:
    with serving(repository, "--workers", 2) as server:
        assert [found.ppid() for found in find_server(server.address)] == [server.process.pid] * 2


def test_a_file_that_the_server_does_not_serve_is_rejected(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(colour_artifact(labels=("a", "b", "c")))
    with serving(repository) as server:
        done = bench(server.address, "--file", other)
    assert done.returncode == 2
    assert "give the file that is served" in done.stderr


def test_unanswered_requests_are_an_error(tmp_path: Path) -> None:
    publish(tmp_path, "slow", colour_artifact(slow_steps=20))
    with serving(tmp_path, "--allow-uncertified", "--max-queue", "0") as server:
        done = bench(server.address, "--in-flight", "64", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["loads"][0]["outcomes"]["RESOURCE_EXHAUSTED"] > 0
    assert "were not answered" in done.stderr


@pytest.mark.parametrize("wrong", ["0", "1,x", ""])
def test_an_invalid_number_of_callers_is_rejected(wrong: str) -> None:
    done = bench("127.0.0.1:1", "--in-flight", wrong)
    assert done.returncode == 2
    assert "is not a list of numbers" in done.stderr
