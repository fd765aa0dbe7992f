"""The measurements of all published results: their commands exist, and one call runs them and says what is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.measurements import MEASUREMENTS
from docs.tables.documents import MEASURED
from docs.tables.measured import newest
from docs.tables.measured.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[1]
PLANNED = "speed.scaling"  # computes from figures of `evalmode bench`, and measures nothing
# Parses command lines with the parsers of the benchmarks, and ends each before it measures.
PARSE = """
import argparse, contextlib, importlib, io, json, sys
parse = argparse.ArgumentParser.parse_args
def end(parser, *arguments):
    parse(parser, *arguments)
    raise SystemExit("parsed")
argparse.ArgumentParser.parse_args = end
found = {}
for name, module, words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            importlib.import_module(module).main()
        except SystemExit as ended:
            found[name] = ended.code if ended.code == "parsed" else said.getvalue()
print(json.dumps(found))
"""
# With a path for each input; an input of several words has two.
VALUES = {
    "plot": ["plot.png"],
    **{name: [name] for name in ("trashnet", "cifar10", "run", "artifact", "photo", "before", "image", "keras")},
    "runs": ["run-0", "run-1"],
    "peers": ["mlserver=python", "mosec=python"],
}


def test_every_command_is_one_that_its_benchmark_takes(tmp_path: Path) -> None:
    jobs = [
        (f"{name} {number}", f"benchmarks.{one.module}", [*words, "--out", str(tmp_path / "result.json")])
        for name, one in MEASUREMENTS.items()
        for number, words in enumerate(one.list_arguments(VALUES))
    ]
    done = subprocess.run([sys.executable, "-c", PARSE, json.dumps(jobs)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {name for name, _, _ in jobs}
    assert {name: said for name, said in found.items() if said != "parsed"} == {}


def test_every_benchmark_has_a_measurement() -> None:
    assert {one.module for one in MEASUREMENTS.values()} == BENCHMARKS.keys() - {PLANNED}


def test_every_result_that_the_documents_read_is_measured_and_the_others_are_unpublished() -> None:
    read = {name for _, names in MEASURED.values() for name in names}
    read |= {name for one in BENCHMARKS.values() for name in one.results}
    for document in (ROOT / "docs").rglob("*.md"):
        read |= set(re.findall(r"results/\d{4}-\d\d-\d\d-([\w-]+)\.", document.read_text()))
    assert read <= MEASUREMENTS.keys()
    for name in MEASUREMENTS.keys() - read:
        assert not BENCHMARKS[MEASUREMENTS[name].module].results, name


def test_a_result_is_measured_by_the_benchmark_that_it_is_listed_with() -> None:
    for module, benchmark in BENCHMARKS.items():
        assert {MEASUREMENTS[name].module for name in benchmark.results} <= {module}


def test_every_benchmark_that_can_miss_a_requirement_documents_its_exit_code() -> None:
    judging = {one.module for one in MEASUREMENTS.values() if one.judges()}
    ending = {
        module
        for module in BENCHMARKS.keys() - {PLANNED}
        if re.search(
            r"sys\.exit\((?:1|bool|0 if|not|max|abs|rows|1 if|f\"{failed})",
            (ROOT / "benchmarks" / f"{module.replace('.', '/')}.py").read_text(),
        )
    }
    assert judging == ending


OVERLOAD = {"goodput_of_capacity": 0.96}


def test_results_of_one_overload_and_of_several_are_shown_alike() -> None:
    assert newest.describe_overload([OVERLOAD]) == newest.describe_overload([{"overloads": [OVERLOAD]}])


class Clone:
    """A clone of this checkout as it is, with its changes as a commit."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder / "clone", folder / "out"
        git(ROOT, "clone", "--quiet", "--shared", str(ROOT), str(self.folder))
        changed = git(ROOT, "diff", "HEAD", "--name-only", "--diff-filter=d", "--relative").splitlines()
        for name in (*changed, *git(ROOT, "ls-files", "--others", "--exclude-standard").splitlines()):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes((ROOT / name).read_bytes())
        self.commit()

    def commit(self) -> None:
        git(self.folder, "add", "--all")
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        git(self.folder, *who, "commit", "--quiet", "--allow-empty", "--message", "test")

    def run(self, *options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.whole", "--out", self.out, *options]
        return subprocess.run(list(map(str, command)), cwd=self.folder, capture_output=True, text=True)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Clone]:
    yield Clone(tmp_path)
    shutil.rmtree(tmp_path / "clone")  # pytest keeps the folders of several runs


def test_a_checkout_with_changes_is_refused_and_nothing_is_created(clone: Clone) -> None:
    (clone.folder / "new.py").touch()
    done = clone.run("decoding")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"this checkout is at commit \w{8} with changes: results must name a commit; measure a clone without changes\n",
        done.stderr,
    )
    assert not clone.out.exists()


def test_results_are_not_written_into_the_checkout(clone: Clone) -> None:
    done = clone.run("--out", clone.folder / "results", "decoding")
    assert done.returncode == 1
    assert "results is in the checkout, which must stay without changes: name another folder\n" in done.stderr


def test_a_wrong_argument_is_one_line(tmp_path: Path) -> None:
    for options, message in (
        (("decodings",), "no result is named decodings: see --list"),
        (
            ("--peer", "mosec"),
            "--peer mosec is not NAME=PYTHON with a NAME of keras, mlserver, kserve, pytriton, mosec",
        ),
        (("--trashnet", tmp_path / "none"), "none is not a folder"),
    ):
        command = [sys.executable, "-m", "benchmarks.whole", "--out", tmp_path / "out", *options]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.endswith(f"{message}\n")


def test_the_others_are_run_after_a_failure_and_what_is_missing_is_said(clone: Clone) -> None:
    for name in ("decoding", "hot_path"):
        broken = clone.folder / "benchmarks" / "speed" / f"{name}.py"
        broken.write_text(f'raise RuntimeError("{name} is broken")\n')
    clone.commit()
    done = clone.run("decoding", "hot-path", "drift")
    *ran, skipped, first, second = done.stdout.splitlines()
    assert [line.split(":")[0] for line in ran] == ["decoding", "hot-path"]
    assert all(re.fullmatch(r"[\w-]+: 0\.\d minutes, exit code 1", line) for line in ran)
    assert skipped == "drift: skipped, no --cifar10 DIR"
    assert first == "FAILED decoding: no result; RuntimeError: decoding is broken"
    assert second == "FAILED hot-path: no result; RuntimeError: hot_path is broken"
    assert done.returncode == 1
    assert list(clone.out.glob("*.json")) == []


def test_the_result_of_a_missed_requirement_is_kept_and_that_of_a_crash_is_not(clone: Clone) -> None:
    """Of the benchmark of damaged images with two images of a kind, which ends in either way."""
    script = clone.folder / "benchmarks" / "soak" / "damage.py"
    text = script.read_text().replace("judge(options.count,", "judge(2,")
    ending = 'sys.exit(bool(done["wrong"]))'
    assert text.count(ending) == 1
    script.write_text(text.replace(ending, 'raise RuntimeError("broken")'))
    clone.commit()
    assert clone.run("damage").stdout.splitlines()[1:] == ["FAILED damage: no result; RuntimeError: broken"]
    assert list(clone.out.glob("*.json")) == []
    script.write_text(text.replace(ending, "sys.exit(1)"))
    clone.commit()
    ended = clone.run("damage").stdout.splitlines()[1]
    assert ended.startswith("FAILED damage: a requirement is not met; ")
    [path] = clone.out.glob("*.json")
    assert json.loads(path.read_text())["damaged"]
    assert clone.run("damage").stdout == f"damage: measured, {path.name}\n"


@pytest.mark.slow
def test_a_result_is_stamped_and_measured_once_for_a_commit(clone: Clone) -> None:
    done = clone.run("decoding")
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r"decoding: \d\.\d minutes, exit code 0\n", done.stdout)
    [path] = clone.out.glob("*.json")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-decoding\.json", path.name)
    stamp = json.loads(path.read_text())["stamp"]
    assert (stamp["commit"], stamp["dirty"]) == (git(clone.folder, "rev-parse", "HEAD").strip(), False)
    assert clone.run("decoding").stdout == f"decoding: measured, {path.name}\n"
    other = json.loads(path.read_text()) | {"stamp": stamp | {"processor": "another processor"}}
    path.write_text(json.dumps(other))
    assert clone.run("decoding").stdout.startswith("decoding: 0.")
