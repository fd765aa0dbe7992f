"""Writes the results of benchmarks, each with the commit, the versions and the machine that it was measured with.

A result is a JSON object: ``stamp`` has the fields of ``Stamp``, ``arguments`` the options of the benchmark with its
defaults, and the figures stand beside them.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from evalmode.files import check_writable, find_existing, write_atomically
from evalmode.runtime.cpus import count_cpus
from serving.engine.memory import read_memory_limit

PACKAGES = (
    *("torch", "onnxruntime", "onnxruntime-gpu", "onnx", "grpcio", "pygrpc-native", "protobuf", "uvloop"),
    *("numpy", "pillow", "simplejpeg", "scipy", "scikit-learn"),
)
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # by their flag in /proc/cpuinfo, the widest first
VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MALLOC_ARENA_MAX")


@dataclass(frozen=True)
class Stamp:
    """What a result was measured with.

    Attributes:
        commit: Full hash of the commit; empty outside a Git checkout.
        dirty: Whether the checkout has changes or new files, those of benchmarks/results aside.
        date: UTC, ISO 8601, when the benchmark began.
        command: The command line; of an absolute path only the last part.
        environment: The variables of ``VARIABLES`` that are set.
        versions: Of Python and of the packages of ``PACKAGES`` that are installed.
        processor: Its name and vector instructions, see ``describe_processor``.
        cpus: The CPUs that this process may use.
        memory_bytes: The memory that this process may use.
    """

    commit: str
    dirty: bool
    date: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    versions: Mapping[str, str]
    processor: str
    cpus: int
    memory_bytes: int


def add_out(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--out FILE`` to a benchmark, and stamp it: the code may change while it runs.

    Args:
        parser: The parser of its command line.
        required: Whether the option is required.
    """
    parser.add_argument("--out", type=read_out, required=required, metavar="FILE", help="the result, as JSON")
    take_stamp()


def read_out(text: str) -> Path:
    """Read the path of a result; an unusable one is refused before anything is measured.

    Args:
        text: The path.

    Raises:
        argparse.ArgumentTypeError: It is a folder, or nothing can be written there.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file")
    try:
        check_writable(find_existing(path.parent))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error}") from error
    return path


def write_result(arguments: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Write a result into the file ``arguments.out``, whose folder is created; nothing if it is None.

    Args:
        arguments: The command-line arguments.
        figures: What was measured, for JSON; without the keys "stamp" and "arguments".
    """
    if arguments.out is None:
        return
    result = {"stamp": asdict(take_stamp()), "arguments": describe_arguments(arguments), **figures}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out, json.dumps(result, indent=1) + "\n")


def read_unfinished(arguments: argparse.Namespace, *fixed: str) -> dict[str, Any]:
    """Read the result that an interrupted benchmark has left in ``arguments.out``, to continue it.

    Args:
        arguments: The command-line arguments.
        fixed: The names of those with which every figure of the result is measured.

    Returns:
        The figures alone; none if there is no such file.

    Raises:
        SystemExit: It was begun with another commit, other versions or another processor, or with other values of
            ``fixed``; a checkout has changes, or it has no stamp.
    """
    out = arguments.out
    if not out.exists():
        return {}
    result: Any = json.loads(out.read_text())
    figures: dict[str, Any] = result if isinstance(result, dict) else {}
    stamp, now = figures.pop("stamp", {}), take_stamp()
    before, given = figures.pop("arguments", {}), describe_arguments(arguments)
    begun, present = describe_conditions(stamp), describe_conditions(asdict(now))
    if now.dirty or begun != present:
        raise SystemExit(f"{out} was begun with {begun}, this is {present}: choose another --out")
    for name in fixed:
        if before.get(name) != given[name]:
            raise SystemExit(f"{out} was begun with {name} {before.get(name)}, not {given[name]}: choose another --out")
    return figures


def describe_arguments(arguments: argparse.Namespace) -> dict[str, object]:
    """Describe the command-line arguments as JSON has them, without that of the result's file.

    Args:
        arguments: The arguments.
    """
    return {name: describe_value(value) for name, value in vars(arguments).items() if name != "out"}


def describe_conditions(stamp: Mapping[str, Any]) -> str:
    """Name the commit, the processor and the versions of a stamp, which must not differ within a result.

    Args:
        stamp: The stamp; empty for a result without one.
    """
    versions = " ".join(f"{name} {number}" for name, number in stamp.get("versions", {}).items())
    return ", ".join(filter(None, (name_commit(stamp), stamp.get("processor"), versions)))


@functools.cache
def take_stamp() -> Stamp:
    """Describe the checkout, the command and the machine of this process, as they are at the first call."""
    changes = run_git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    is_checkout = run_git("rev-parse", "--show-toplevel") == str(ROOT.resolve())  # not a copy inside another checkout
    return Stamp(
        commit=run_git("rev-parse", "HEAD") if is_checkout else "",
        dirty=bool(changes),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=describe_command(),
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        versions={"python": platform.python_version(), **find_versions()},
        processor=read_processor(),
        cpus=count_cpus(),
        memory_bytes=read_memory_limit().limit_bytes,
    )


def describe_result(result: Mapping[str, Any]) -> str:
    """Describe the machine and the date of a result in a line, with its stamp or, as older ones, without.

    Args:
        result: The content of its file.
    """
    if "stamp" not in result:
        return f"{result['machine']}; {result['date']}"
    stamp = result["stamp"]
    return f"{stamp['processor']}, {stamp['cpus']} CPUs; {stamp['date'][:10]}"


def name_commit(stamp: Mapping[str, Any]) -> str:
    """Name the commit of a stamp, and whether the checkout had changes.

    Args:
        stamp: The stamp; empty for a result without one.
    """
    if not stamp.get("commit"):
        return "an unknown commit"
    return f"commit {stamp['commit'][:8]}" + (" with changes" if stamp["dirty"] else "")


def run_git(*arguments: str) -> str:
    """Ask Git about this checkout; empty outside one, or without Git.

    Args:
        arguments: The arguments of ``git``.
    """
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe_command() -> tuple[str, ...]:
    """List the words of this process's command line, without the folders of absolute paths."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ("-m", spec.name) if spec else (Path(sys.argv[0]).name,)
    return ("python", *program, *map(shorten, sys.argv[1:]))


def describe_value(value: object) -> object:
    """Return the value of an argument as JSON has it, absolute paths by their last part.

    Args:
        value: The value.
    """
    if isinstance(value, (list, tuple, range)):
        return [describe_value(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return shorten(str(value)) if isinstance(value, (Path, str)) else value


def shorten(word: str) -> str:
    """Shorten an absolute path, also behind an equals sign, to its last part.

    Args:
        word: A word of a command line.
    """
    option, sign, value = word.rpartition("=")
    return option + sign + (Path(value).name if value.startswith("/") else value)


def find_versions() -> dict[str, str]:
    """Find the versions of the installed packages that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_processor() -> str:
    """Return the name of this machine's processor, as ``describe_processor`` if Linux states it."""
    path = Path("/proc/cpuinfo")
    described = describe_processor(path.read_text()) if path.exists() else ""
    return described or platform.processor() or platform.machine()


def describe_processor(cpuinfo: str) -> str:
    """Name a processor and its widest vector instructions: processors of one name may differ in them, and in speed.

    Args:
        cpuinfo: The content of /proc/cpuinfo.

    Returns:
        The description; empty if the file states no name, as on ARM.
    """
    name = re.search(r"^model name\s*: (.*)", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)", cpuinfo, re.MULTILINE)
    vectors = [words for flag, words in VECTORS.items() if flags and flag in flags[1].split()]
    return ", ".join([name[1], *vectors[:1]]) if name else ""
