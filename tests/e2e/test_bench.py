"""``evalmode bench`` against real servers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving.repository import publish
from tests.conftest import colour_artifact, encode, plain, serving


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path, "colours", colour_artifact())
    return tmp_path


def bench(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving", "bench", *map(str, options), "--seconds", "0.5"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_closed_loop_says_how_near_it_comes_to_onnxruntime(repository: Path) -> None:
    file = repository / "colours" / "1" / "model.onnx"
    with serving(repository) as server:
        done = bench(server.address, "--in-flight", "1,4", "--file", file, "--json")
        shown = bench(server.address, "--in-flight", "2")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == "colours/1"
    assert [row["load"] for row in told["loads"]] == ["1 in flight", "4 in flight"]
    for row in told["loads"]:
        assert set(row["outcomes"]) == {"OK"}
        assert row["outcomes"]["OK"] > 10
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["client_cpu_us"] > 0
        assert row["server_cpu_us"] > 0
        assert row["of_raw"] == pytest.approx(row["rate"] / told["raw"]["rate"], abs=0.0006)
    assert shown.stdout.splitlines()[0].startswith("colours/1 at ")
    assert "2 in flight" in shown.stdout


def test_a_constant_rate_is_kept_whatever_the_answers_take(repository: Path, tmp_path: Path) -> None:
    image = tmp_path / "red.png"
    image.write_bytes(encode(plain("red")))
    with serving(repository) as server:
        done = bench(server.address, "--rate", "40", "--image", image, "--json")
    [row] = json.loads(done.stdout)["loads"]
    assert row["load"] == "40/s"
    assert row["outcomes"] == {"OK": 20}


def test_a_rate_that_is_too_much_shows_in_the_latency(tmp_path: Path) -> None:
    publish(tmp_path, "slow", colour_artifact(slow_steps=20))
    with serving(tmp_path, "--allow-uncertified") as server:
        closed, opened = (
            json.loads(bench(server.address, *load, "--json").stdout)["loads"][0]
            for load in (("--in-flight", 1), ("--rate", 3000))
        )
    assert opened["p99_ms"] > closed["p99_ms"]  # from the moment when a request was due, not when it was sent


def test_another_file_than_the_server_has_is_refused(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(colour_artifact(labels=("a", "b", "c")))
    with serving(repository) as server:
        done = bench(server.address, "--file", other)
    assert done.returncode == 2
    assert "give the file that is served" in done.stderr


def test_requests_that_are_not_answered_end_in_an_error(repository: Path) -> None:
    with serving(repository, "--max-queue", "0") as server:
        done = bench(server.address, "--in-flight", "64", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["loads"][0]["outcomes"]["RESOURCE_EXHAUSTED"] > 0
    assert "were not answered" in done.stderr


@pytest.mark.parametrize("wrong", ["0", "1,x", ""])
def test_a_number_of_callers_that_is_none_is_refused(wrong: str) -> None:
    done = bench("127.0.0.1:1", "--in-flight", wrong)
    assert done.returncode == 2
    assert "is not a list of numbers" in done.stderr
