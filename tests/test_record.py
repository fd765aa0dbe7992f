"""Every result of a benchmark says with which commit, versions and machine it was measured."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks import record
from benchmarks.record import (
    add_out,
    describe_processor,
    describe_result,
    read_out,
    read_unfinished,
    shorten,
    take_stamp,
    write_result,
)

ROOT = Path(__file__).parents[1]
SCHEMA = {
    "commit": str,
    "dirty": bool,
    "date": str,
    "command": list,
    "environment": dict,
    "versions": dict,
    "processor": str,
    "cpus": int,
    "memory_bytes": int,
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a benchmark writes that runs as a user starts it."""
    out = tmp_path_factory.mktemp("results") / "new" / "damage.json"
    command = [sys.executable, "-m", "benchmarks.soak.damage", "--count", "2", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    written: dict[str, Any] = json.loads(out.read_text())
    return written


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def test_the_stamp_has_the_fields_of_its_schema(result: dict[str, Any]) -> None:
    stamp = result["stamp"]
    assert {name: type(value) for name, value in stamp.items()} == SCHEMA
    assert stamp["cpus"] >= 1
    assert stamp["memory_bytes"] > 2**28
    assert stamp["processor"]
    assert datetime.fromisoformat(stamp["date"]).utcoffset() == timedelta(0)
    assert {"python", "numpy", "onnx", "onnxruntime", "grpcio", "torch"} <= stamp["versions"].keys()
    assert all(version[0].isdigit() for version in stamp["versions"].values())


def test_the_stamp_names_the_commit_and_whether_the_checkout_differs(result: dict[str, Any]) -> None:
    assert result["stamp"]["commit"] == git("rev-parse", "HEAD")
    assert result["stamp"]["dirty"] == bool(git("status", "--porcelain", "--", ".", ":!benchmarks/results"))


def test_the_result_has_command_arguments_and_figures(result: dict[str, Any]) -> None:
    command = ["python", "-m", "benchmarks.soak.damage", "--count", "2", "--out", "damage.json"]
    assert result["stamp"]["command"] == command
    assert result["arguments"] == {"count": 2, "seed": 0, "intact": None, "digests": None}
    assert result["damaged"]["rows"]["all"]["damaged"] > 0


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--out", "--out"),
        ("/home/somebody/results/a.json", "a.json"),
        ("mlserver=/opt/environment/bin/python", "mlserver=python"),
        ("relative/a.json", "relative/a.json"),
        ("1/4", "1/4"),
    ],
)
def test_absolute_paths_are_shortened(word: str, shown: str) -> None:
    assert shorten(word) == shown


def test_an_unusable_file_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path, tmp_path / "file" / "a.json"):
        with pytest.raises(argparse.ArgumentTypeError, match=str(wrong)):
            read_out(str(wrong))
    assert read_out(str(tmp_path / "new" / "a.json")) == tmp_path / "new" / "a.json"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]  # nothing is left behind


def test_a_result_is_continued_only_with_its_commit_versions_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    add_out(parser)
    arguments = parser.parse_args(["--out", str(tmp_path / "a.json")])
    clean = replace(take_stamp(), dirty=False)
    monkeypatch.setattr(record, "take_stamp", lambda: clean)
    assert read_unfinished(arguments) == {}
    write_result(arguments, {"runs": [1]})
    assert read_unfinished(arguments) == {"runs": [1]}
    content = json.loads(arguments.out.read_text())
    stamp = content["stamp"]
    others: dict[str, Any] = {
        "commit 00000000": {**content, "stamp": {**stamp, "commit": "0" * 40}},
        "commit .* with changes": {**content, "stamp": {**stamp, "dirty": True}},
        "commit .*, another processor": {**content, "stamp": {**stamp, "processor": "another processor"}},
        "commit .*, .* onnx 0.1 ": {**content, "stamp": {**stamp, "versions": {**stamp["versions"], "onnx": "0.1"}}},
        "an unknown commit": {"runs": [1]},
        "an unknown commit,": [1],
    }
    for begun, other in others.items():
        arguments.out.write_text(json.dumps(other))
        with pytest.raises(SystemExit, match=f"was begun with {begun}.*choose another --out"):
            read_unfinished(arguments)


def test_a_result_is_continued_with_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_out(parser)
    parser.add_argument("--data")
    parser.add_argument("--seeds")
    clean = replace(take_stamp(), dirty=False)
    monkeypatch.setattr(record, "take_stamp", lambda: clean)

    def parse(data: str, seeds: str) -> argparse.Namespace:
        return parser.parse_args(["--out", str(tmp_path / "a.json"), "--data", data, "--seeds", seeds])

    write_result(parse("/data/cifar10", "1"), {"runs": [1]})
    assert read_unfinished(parse("/moved/cifar10", "2"), "data") == {"runs": [1]}
    with pytest.raises(SystemExit, match=r"was begun with data cifar10, not trashnet: choose another --out"):
        read_unfinished(parse("/data/trashnet", "1"), "data")


def test_a_checkout_with_changes_continues_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The changes of then and of now may differ."""
    parser = argparse.ArgumentParser()
    add_out(parser)
    arguments = parser.parse_args(["--out", str(tmp_path / "a.json")])
    changed = replace(take_stamp(), dirty=True)
    monkeypatch.setattr(record, "take_stamp", lambda: changed)
    write_result(arguments, {"runs": [1]})
    with pytest.raises(SystemExit, match=r"this is .* with changes.*choose another --out"):
        read_unfinished(arguments)


def test_results_with_and_without_a_stamp_are_described() -> None:
    stamp = {"processor": "AMD EPYC", "cpus": 2, "date": "2026-11-27T03:00:00+00:00"}
    assert describe_result({"stamp": stamp}) == "AMD EPYC, 2 CPUs; 2026-11-27"
    assert describe_result({"machine": "AMD EPYC, 2 cores", "date": "2026-11-26"}) == "AMD EPYC, 2 cores; 2026-11-26"


@pytest.mark.parametrize(
    ("cpuinfo", "described"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: sse2 avx avx2 avx512f avx512_vnni\n", "AMD EPYC, AVX-512"),
        ("model name\t: AMD EPYC\nflags\t\t: sse2 avx avx2 fma\n", "AMD EPYC, AVX2"),
        ("model name\t: Old One\nflags\t\t: sse2\nvmx flags\t: avx2\n", "Old One"),
        ("model name\t: POWER9\n", "POWER9"),
        ("processor\t: 0\nFeatures\t: asimd\n", ""),
    ],
    ids=["avx512", "avx2", "sse2", "no-flags", "no-name"],
)
def test_a_processor_is_named_with_its_widest_vector_instructions(cpuinfo: str, described: str) -> None:
    assert describe_processor(cpuinfo) == described


def test_the_stamp_is_taken_once() -> None:
    """A commit during a measurement does not change what was measured."""
    assert take_stamp() is take_stamp()
