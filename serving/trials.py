"""Loads artifacts in child processes under resource limits before the server loads them: docs/decisions/0018."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from evalmode import errors
from evalmode.errors import ArtifactInvalid, LoadLimitExceeded, TrialUnavailable
from evalmode.limits import Limits
from serving.spawn import start_process

# The header of a request: length of the artifact that follows, --load-seconds, --load-bytes, --allow-uncertified.
ORDER = struct.Struct("!QQQ?")
_MAX_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True)
class _Child:
    """A child process and the socket that connects to it."""

    process: subprocess.Popen[bytes]
    orders: socket.socket

    def end(self) -> int:
        """Kill the process, and return its exit code, or the one with which it had ended before."""
        self.process.kill()
        code = self.process.wait()
        self.orders.close()
        return code


class Trials:
    """Loads artifacts in child processes to find out whether they are valid. It can be used by several threads.

    Args:
        limits: Gives ``load_seconds`` and ``load_bytes``.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._changing = threading.Lock()  # guards the following attributes
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False

    def prepare(self) -> None:
        """Start a child process in advance.

        Raises:
            TrialUnavailable: No process can be started.
        """
        child = _start()
        with self._changing:
            self._idle.append(child)

    def examine(self, artifact: bytes, allow_uncertified: bool = False) -> None:
        """Load an artifact in a child process as the server would, on the CPU: check and replay it.

        Args:
            artifact: The bytes of a ``model.onnx``.
            allow_uncertified: Whether to accept an artifact without a certificate.

        Raises:
            ArtifactInvalid: The artifact is invalid.
            LoadLimitExceeded: Loading it takes too much time or memory.
            TrialUnavailable: No process can be started.
        """
        child = self._take()
        until = time.monotonic() + self._limits.load_seconds
        answer = self._ask(child, artifact, allow_uncertified, until)
        if answer == "":
            self._put_back(child)
            return
        self._forget(child)
        code = child.end()  # also after an invalid artifact, which may have left the process in a bad state
        if answer is None:
            raise self._explain(code, late=time.monotonic() >= until)
        name, _, reason = answer.partition(":")
        raise getattr(errors, name)(reason)

    def rest(self) -> None:
        """End the idle child processes."""
        with self._changing:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def close(self) -> None:
        """Kill all child processes. Calls of ``examine`` that wait for one raise, and so do later calls."""
        with self._changing:
            self._closed = True
            for child in self._busy:
                child.process.kill()
        self.rest()

    def _take(self) -> _Child:
        with self._changing:
            child = self._idle.pop() if self._idle else None
        child = child or _start()
        with self._changing:
            self._busy.add(child)
            if self._closed:
                child.process.kill()
        return child

    def _ask(self, child: _Child, artifact: bytes, allow_uncertified: bool, until: float) -> str | None:
        """Send an artifact to a child process, and return its answer; None if it was late or has ended."""
        order = ORDER.pack(len(artifact), self._limits.load_seconds, self._limits.load_bytes, allow_uncertified)
        answer = b""
        try:
            for part in (order, artifact):
                child.orders.settimeout(max(0.001, until - time.monotonic()))
                child.orders.sendall(part)
            while not answer.endswith(b"\n"):
                child.orders.settimeout(max(0.001, until - time.monotonic()))
                received = child.orders.recv(_MAX_ANSWER_BYTES)
                answer += received
                if not received or len(answer) > _MAX_ANSWER_BYTES:
                    return None
        except OSError:  # a timeout, or the child process has ended
            return None
        return answer[:-1].decode(errors="replace")

    def _put_back(self, child: _Child) -> None:
        with self._changing:
            self._busy.discard(child)
            if not self._closed:
                self._idle.append(child)
                return
        child.end()

    def _forget(self, child: _Child) -> None:
        with self._changing:
            self._busy.discard(child)

    def _explain(self, code: int, late: bool) -> ArtifactInvalid:
        """Explain why a child process did not answer, by its exit code."""
        if self._closed:
            return ArtifactInvalid("not loaded: the server is shutting down")
        if late or code == -signal.SIGXCPU:
            return LoadLimitExceeded(
                f"checking and replaying it takes more than --load-seconds {self._limits.load_seconds}: raise "
                "--load-seconds to serve it"
            )
        how = f"with exit code {code}"
        with suppress(ValueError):
            how = f"by {signal.Signals(-code).name}"
        return LoadLimitExceeded(
            f"the process that checked and replayed it ended {how}: it makes onnxruntime crash, or needs more memory "
            f"than --load-bytes {self._limits.load_bytes} or than is available"
        )


def _start() -> _Child:
    orders, child_end = socket.socketpair()
    with child_end:
        try:
            process = start_process("serving.trial", child_end, subprocess.DEVNULL)
        except OSError as error:
            orders.close()
            raise TrialUnavailable(f"cannot start a process to check it in: {error}") from error
    return _Child(process, orders)
