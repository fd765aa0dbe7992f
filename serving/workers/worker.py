"""The process of one worker: a server that its supervisor configures, loads, starts and drains over a channel."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from serving.config import ServeConfig
from serving.engine.memory import return_large_blocks
from serving.logs import set_up_log
from serving.part import Part
from serving.process import exit_now, exit_within
from serving.services.models import Entry
from serving.trials import Trials
from serving.workers.channel import Channel, Message

log = logging.getLogger("serving")

END_S = 2.0  # after the grace period


def main() -> None:
    """Serve until the supervisor drains this process, or has vanished."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to all processes of a service; the supervisor drains this one
    return_large_blocks()
    with socket.socket(fileno=0) as connection:
        worker = Worker(connection)
        worker.channel.start()
        worker.channel.closed.wait()
        worker.end()


class Worker:
    """Answers the requests of the supervisor, whose kinds are the names of methods.

    Args:
        connection: The socket to the supervisor.

    Attributes:
        channel: The channel to the supervisor.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.channel = Channel(connection, self._answer)
        self._stopping = threading.Event()
        self._listening = False
        self._drained = threading.Event()

    def configure(self, message: Message, data: bytes) -> Message:
        """Import everything, and build the server.

        Args:
            message: The configuration of the server and of the log, the number of this worker and that of all.
            data: Not used.
        """
        set_up_log(*message["log"], message["number"])
        # onnxruntime and grpc, after the log: an error of theirs is a record of this worker
        from evalmode.runtime.loading import LoadOptions
        from serving.server import Server
        from serving.workers.models import WorkerModels

        config = self._config = ServeConfig(**message["options"], limits=Limits(**message["limits"]))
        options = LoadOptions(
            provider=config.provider,
            allow_uncertified=config.allow_uncertified,
            replay_s=config.limits.load_seconds,
            lone_threads=1 if config.one_thread else count_cpus(),
        )
        self._models = WorkerModels(options, self.channel)
        part = Part(message["workers"], self._models)
        self._server = Server(config, Trials(config.limits), self._stopping, part)
        return {}

    def take(self, message: Message, data: bytes) -> Message:
        """Load a version.

        Args:
            message: Its name and version.
            data: The bytes of its file.

        Returns:
            Its facts, for the log.
        """
        return self._models.take(message["name"], message["version"], data)._asdict()

    def put(self, message: Message, data: bytes) -> Message:
        """Answer requests by other versions.

        Args:
            message: The arguments of ``WorkerModels.put``.
            data: Not used.

        Returns:
            The versions that are missing.
        """
        served = {name: [*map(tuple, versions)] for name, versions in message["served"].items()}
        entries = [Entry(*entry) for entry in message["entries"]]
        return {"missing": self._models.put(served, entries, message["pending"], message["partial"])}

    def listen(self, message: Message, data: bytes) -> Message:
        """Bind the port, on which connections wait until ``start``.

        Args:
            message: Not used.
            data: Not used.
        """
        self._server.load()
        self._server.listen()
        self._listening = True
        return {}

    def start(self, message: Message, data: bytes) -> Message:
        """Answer calls, and report SERVING.

        Args:
            message: Not used.
            data: Not used.
        """
        gc.freeze()  # a full collection would otherwise visit everything that is loaded, and delay every call
        self._server.start()
        return {}

    def ping(self, message: Message, data: bytes) -> Message:
        """Return since when the server has not answered a health check of its own.

        Args:
            message: Not used.
            data: Not used.
        """
        return {"silent_s": self._server.silent_s()}

    def drain(self, message: Message, data: bytes) -> Message:
        """Drain the server.

        Args:
            message: Not used.
            data: Not used.

        Returns:
            The number of requests that were cut, and of those that were answered since the start.
        """
        self._drained.set()
        return self._server.drain()._asdict()

    def end(self) -> None:
        """Exit. If the supervisor vanished before it could drain this process, drain first."""
        limits = getattr(self, "_config", None) and self._config.limits
        if self._listening and limits and not self._drained.is_set():
            log.error("the supervisor has ended: draining")
            exit_within(limits.lame_duck + limits.grace + END_S)
            self._server.drain().log(limits.grace)
        exit_now(1)

    def _answer(self, kind: str, message: Message, data: bytes) -> tuple[Message, bytes]:
        answers: dict[str, Any] = {
            one.__name__: one
            for one in (self.configure, self.take, self.put, self.listen, self.start, self.ping, self.drain)
        }
        return answers[kind](message, data), b""
