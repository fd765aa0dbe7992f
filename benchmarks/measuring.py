"""Runs the commands of one measurement in processes of their own, and keeps its result if it is complete."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from benchmarks.inputs import Inputs
from benchmarks.measurements import PLOT, Measurement
from benchmarks.processes import ROOT, list_command, make_environment
from benchmarks.record import describe_conditions, take_stamp

CRASH = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Ended:
    """How a measurement ended.

    Attributes:
        minutes: How long it took.
        code: The exit code of its last command.
        line: The last line of its output.
        complete: Whether its result is complete.
    """

    minutes: float
    code: int
    line: str
    complete: bool


def find_measured(folder: Path, name: str) -> Path | None:
    """Find a result of this commit, these versions and this processor.

    Args:
        folder: The folder of the results.
        name: The name of the result.
    """
    return next((path for path in sorted(folder.glob(f"????-??-??-{name}.json")) if is_of_now(path)), None)


def is_of_now(path: Path) -> bool:
    """Whether a result has the commit, the versions and the processor of this process.

    Args:
        path: The file.
    """
    stamp = json.loads(path.read_text()).get("stamp", {})
    return describe_conditions(stamp) == describe_conditions(asdict(take_stamp()))


def measure(name: str, measurement: Measurement, inputs: Inputs, folder: Path) -> Ended:
    """Run the commands of a measurement, and move its result into the folder if it is complete.

    Args:
        name: The name of the result.
        measurement: The measurement.
        inputs: The inputs.
        folder: The folder of the results.
    """
    out, started, code = inputs.work / f"{name}.json", time.monotonic(), 0
    if out.exists() and not is_of_now(out):
        out.unlink()
    log = out.with_suffix(".log")
    try:
        values = {one: inputs.find(one) for one in measurement.list_inputs()}
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        return Ended((time.monotonic() - started) / 60, 1, str(error), False)
    with log.open("w") as output:
        for words in measurement.list_arguments(values | {PLOT: [str(out.with_suffix(".png"))]}):
            command = list_command(f"benchmarks.{measurement.module}", *words, "--out", out)
            code = code or run(command, output)
    text = log.read_text(errors="replace").strip()
    complete = (
        out.exists() and is_of_now(out) and (code == 0 or (code == 1 and measurement.judges() and CRASH not in text))
    )
    if complete:
        publish(out, folder)
    return Ended((time.monotonic() - started) / 60, code, text.rpartition("\n")[2], complete)


def run(command: list[str], output: IO[str]) -> int:
    """Run a command in the root of the repository, and return its exit code.

    Args:
        command: Its words.
        output: Receives what it prints.
    """
    return subprocess.run(command, cwd=ROOT, env=make_environment(), stdout=output, stderr=subprocess.STDOUT).returncode


def publish(out: Path, folder: Path) -> None:
    """Move a result and its plot into the folder of the results, under the date of its stamp.

    Args:
        out: The result.
        folder: The folder.
    """
    date = json.loads(out.read_text())["stamp"]["date"][:10]
    for path in (out.with_suffix(".png"), out):
        if path.exists():
            path.replace(folder / f"{date}-{path.name}")
