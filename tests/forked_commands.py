"""Runs programs in forks of a process that has imported the large libraries once: the imports take most of their time.

A program starts as a new Python process does: in its own directory and environment, and evalmode's own modules are not
yet imported. It ends as a process of its own. The process that forks reads an order as a line of JSON from its standard
input, and writes the exit code as a line.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIBRARIES = (  # without onnxruntime, which starts a thread when it is imported: a fork would lose it
    "onnxscript.optimizer",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.onnx._internal.exporter._core",
)


class Forks:
    """A process that forks for each program, one program after the other. It starts with the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run_command(self, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``python -m evalmode``.

        Args:
            arguments: The arguments of ``evalmode``.
            cwd: Its working directory; None for that of this process.

        Returns:
            Exit code and output, as of ``subprocess.run``.
        """
        return self._run("evalmode", arguments, cwd or Path.cwd(), [{}])

    def run_ranks(self, count: int, script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a script in several processes at once, with the variables that torchrun sets.

        Args:
            count: How many processes.
            script: The script.
            arguments: Its arguments.

        Returns:
            The first exit code that is not 0, or 0, and the output of all processes.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "TORCHELASTIC_RUN_ID": "test"}
        variables = [{**meet, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
        return self._run(str(script), arguments, Path.cwd(), variables)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _run(
        self, program: str, arguments: tuple[object, ...], cwd: Path, variables: list[dict[str, object]]
    ) -> subprocess.CompletedProcess[str]:
        """Run a module or a script in one process for each set of environment variables."""
        if self._process is None:
            command = [sys.executable, __file__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with tempfile.NamedTemporaryFile("w+") as out, tempfile.NamedTemporaryFile("w+") as err:
            argv = [program, *map(str, arguments)]
            order = {
                "argv": argv,
                "cwd": str(cwd),
                "streams": [out.name, err.name],
                "environments": [{**os.environ, **{key: str(it) for key, it in more.items()}} for more in variables],
            }
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
            try:
                code = int(stdout.readline())
            except BaseException:  # a timeout of the test: a later program would receive this code
                self._process.kill()
                self.close()
                raise
            return subprocess.CompletedProcess(argv, code, out.read(), err.read())


def _serve() -> tuple[dict[str, Any], dict[str, str]] | None:
    """Fork for each environment of each order; return both in the child, None at the end of the input."""
    for line in sys.stdin:
        order, children = json.loads(line), set()
        for environment in order["environments"]:
            if not (child := os.fork()):
                return order, environment
            children.add(child)
        print(_wait(children), flush=True)
    return None


def _wait(children: set[int]) -> int:
    """Wait for processes; if one fails, the others are killed, as torchrun does."""
    first = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in children:
                os.kill(other, signal.SIGKILL)
    return first


def _run(order: dict[str, Any], environment: dict[str, str]) -> None:
    """Run the program of an order in this process."""
    for number, path in enumerate((os.devnull, *order["streams"])):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)  # without what the process has read ahead
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = order["argv"]
    if (program := sys.argv[0]).endswith(".py"):
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[0] = order["cwd"]
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    if (received := _serve()) is not None:
        _run(*received)
