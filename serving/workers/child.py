"""A worker as its supervisor sees it: a process, and a channel to it."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress

from evalmode.errors import WorkerUnavailable
from serving.services.source import Facts
from serving.spawn import start_process
from serving.workers.channel import Answer, Channel, ChannelClosed, ChannelLate
from serving.workers.state import Version


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

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def load(self, version: Version, artifact: bytes, limit_s: float) -> Facts:
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

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
