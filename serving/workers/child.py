"""A worker as its supervisor sees it: a process, and a channel to it."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from contextlib import suppress

from evalmode.errors import WorkerUnavailable
from serving.services.source import Facts
from serving.spawn import start_process
from serving.transports.liveness import CHECK_S, LATE_S
from serving.workers.channel import Answer, Channel, ChannelClosed, ChannelLate
from serving.workers.state import FileVersion

log = logging.getLogger("serving")

# Checks in a row. They are ``CHECK_S`` apart, and each waits as long for an answer: 30 s for a process that is stopped.
# One that answers, but whose own health checks have failed for ``LATE_S``, is killed after 30 s, too. A single check
# may fail in a healthy process, such as after the whole machine was suspended.
MAX_MISSED = 3


class WorkerEnded(Exception):
    """A worker ended while it loaded a version, or was killed because that took too long."""


class Child:
    """A worker process, from its start to its end.

    Args:
        number: The number of the worker.
        stderr: The file descriptor of its log.
        counters: The file descriptor of the shared counters.
        answer: Answers its requests.

    Attributes:
        number: The number of the worker.
        channel: The channel to it.
        is_configured: Whether it can load versions.
        is_listening: Whether connections reach it.
        is_ready: Whether it answers calls.
        generation: The number of the state of the models that it has put into effect.
        lacks: The versions of that state that it could not load.

    Raises:
        WorkerUnavailable: The process cannot be started.
    """

    def __init__(self, number: int, stderr: int, counters: int, answer: Answer) -> None:
        try:
            connection, child_end = socket.socketpair()
            with child_end:
                try:
                    self._process = start_process("serving.workers.worker", child_end, stderr, (counters,))
                except OSError:
                    connection.close()
                    raise
        except OSError as error:
            raise WorkerUnavailable(f"cannot start worker {number}: {error}") from error
        self.number = number
        self.channel = Channel(connection, answer)
        self.channel.start()
        self.is_configured = self.is_listening = self.is_ready = False
        self.generation = 0
        self.lacks: frozenset[FileVersion] = frozenset()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def load(self, version: FileVersion, artifact: bytes, limit_s: float) -> Facts:
        """Let the worker load a version.

        Args:
            version: The version.
            artifact: The bytes of its file.
            limit_s: Seconds that this may take; then the process is killed.

        Raises:
            ArtifactInvalid: The worker refuses the version.
            ProviderUnavailable: The execution provider is not available.
            WorkerEnded: The process has ended. The error says how.
        """
        name, number, _ = version
        try:
            answer, _ = self.channel.ask("take", {"name": name, "version": number}, artifact, limit_s)
        except ChannelLate as error:
            self.kill()
            raise WorkerEnded(f"worker {self.number} took longer than {limit_s:.0f} s, and was killed") from error
        except ChannelClosed as error:
            self.kill()  # it has ended, or does not read
            raise WorkerEnded(f"worker {self.number} ended {self.wait()}") from error
        return Facts(**answer)

    def wait(self) -> str:
        """Wait for the end of the process, and return how it ended, such as "by SIGKILL"."""
        code = self._process.wait()
        self.channel.close()
        with suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
        return f"with exit code {code}"

    def watch(self, stop: threading.Event) -> None:
        """Kill the process once it does not answer its own health checks for about 30 s. Returns when it has ended.

        Args:
            stop: Ends this method. The process is not killed.
        """
        missed = -MAX_MISSED  # its own checks have failed while it waited for the other workers to listen
        while missed < MAX_MISSED and not self.channel.closed.wait(CHECK_S):
            missed = 0 if self._is_alive() else missed + 1
            if stop.is_set():
                return
        if missed == MAX_MISSED:
            log.error("worker %s does not answer its health checks, and is killed", self.number)
        self.kill()

    def _is_alive(self) -> bool:
        """Whether the worker answers, and has answered its own health check recently."""
        try:
            return float(self.channel.ask("ping", timeout_s=CHECK_S)[0]["silent_s"]) < LATE_S
        except (ChannelClosed, ChannelLate, RuntimeError):
            return False

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
