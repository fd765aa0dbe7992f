"""Artifacts are tried in processes of their own, under limits, before the server loads them: docs/decisions/0018."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evalmode import errors
from evalmode.errors import ArtifactInvalid, LoadLimitExceeded, TrialUnavailable
from evalmode.limits import Limits

# The same serving as this one, and nothing else from the folder that it lies in nor from the current one.
_START = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import serving; del sys.path[0]; "
    "from serving.trial import main; main()"
)
ORDER = struct.Struct("!QQQ?")  # length of the artifact that follows, --load-seconds, --load-bytes, --allow-uncertified
_LONGEST_ANSWER = 64 * 1024


@dataclass(frozen=True)
class _Child:
    """A process that tries artifacts, and the socket to it."""

    process: subprocess.Popen[bytes]
    orders: socket.socket

    def end(self) -> int:
        """Kill it, and return what it ended with: if it had ended before, that."""
        self.process.kill()
        code = self.process.wait()
        self.orders.close()
        return code


class Trials:
    """Tries artifacts in child processes; safe to call from several threads.

    Args:
        limits: ``load_seconds`` and ``load_bytes`` of them.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._changing = threading.Lock()  # guards what follows
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False

    def prepare(self) -> None:
        """Start a child now, so that it is ready when there is something to try."""
        child = _start()
        with self._changing:
            self._idle.append(child)

    def examine(self, artifact: bytes, allow_uncertified: bool = False) -> None:
        """Load an artifact in a child, on the CPU, as the server would: check it, replay it.

        Args:
            artifact: the bytes of a ``model.onnx``.
            allow_uncertified: accept one that has no certificate.

        Raises:
            ArtifactInvalid: what is wrong with it; ``LoadLimitExceeded`` if it takes too long or too much memory.
            TrialUnavailable: no process can be started now.
        """
        child = self._take()
        until = time.monotonic() + self._limits.load_seconds
        answer = self._ask(child, artifact, allow_uncertified, until)
        if answer == "":
            self._put_back(child)
            return
        self._forget(child)
        code = child.end()  # after a refusal, too: what a bad file left behind is not kept
        if answer is None:
            raise self._explain(code, late=time.monotonic() >= until)
        name, _, reason = answer.partition(":")
        raise getattr(errors, name)(reason)

    def rest(self) -> None:
        """Let idle children go."""
        with self._changing:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def close(self) -> None:
        """Kill all children; whoever waits for one is refused, and nothing is tried any more."""
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
        """What the child answers; None if it does not: late, or dead."""
        order = ORDER.pack(len(artifact), self._limits.load_seconds, self._limits.load_bytes, allow_uncertified)
        answer = b""
        try:
            for part in (order, artifact):
                child.orders.settimeout(max(0.001, until - time.monotonic()))
                child.orders.sendall(part)
            while not answer.endswith(b"\n"):
                child.orders.settimeout(max(0.001, until - time.monotonic()))
                received = child.orders.recv(_LONGEST_ANSWER)
                answer += received
                if not received or len(answer) > _LONGEST_ANSWER:
                    return None
        except OSError:  # late, or the other end is closed
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
        """Why a child did not answer, by what it ended with."""
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
            f"than --load-bytes {self._limits.load_bytes} or than there is"
        )


def _start() -> _Child:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's SIGINT is for the server, which ends its children itself
            )
        except OSError as error:
            ours.close()
            raise TrialUnavailable(f"no process to check it in can be started: {error}") from error
    return _Child(process, ours)
