"""The process of one worker: a server that its supervisor configures, loads, starts and drains over a channel."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping
from functools import partial

from evalmode.errors import DeadlineExpired, ServerLeaving
from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from serving.config import ServeConfig
from serving.engine.memory import return_large_blocks
from serving.logs import set_up_log
from serving.part import Part
from serving.process import exit_now, exit_within
from serving.services.figures import Counts, Version
from serving.services.loaded import Entry
from serving.transports.sockets import close_listeners_first
from serving.trials import Trials
from serving.workers.channel import Channel, ChannelClosed, ChannelLate, Message
from serving.workers.counters import SharedCounters
from serving.workers.shared_count import SharedCount
from serving.workers.snapshots import decode_figures, encode_figures

log = logging.getLogger("serving")

OTHER_FILES = 1024  # of a worker, beside its connections
END_S = 2.0  # after the grace period
COUNTS_S = 10.0  # for the supervisor to ask all workers for their counters


def main() -> None:
    """Serve until the supervisor ends this process, or has vanished."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to all processes of a service; the supervisor drains this one
    return_large_blocks()
    worker = Worker(socket.socket(fileno=0))
    worker.channel.start()
    worker.channel.closed.wait()
    worker.end()


class Worker:
    """Answers the requests of the supervisor.

    Args:
        connection: The socket to the supervisor.

    Attributes:
        channel: The channel to the supervisor.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.channel = Channel(connection, self._answer)
        self._stopping = threading.Event()
        self._listening = self._drained = False

    def end(self) -> None:
        """Exit. If the supervisor has vanished before it could drain this process, drain first."""
        if self._listening and not self._drained:
            limits = self._config.limits
            log.error("the supervisor has ended: this worker drains")
            exit_within(limits.lame_duck + limits.grace + END_S)
            self._server.drain().log(limits.grace)
        exit_now(1)

    def _answer(self, kind: str, message: Message, data: bytes) -> tuple[Message, bytes]:
        """Answer a request."""
        match kind:
            case "configure":
                self._configure(message)
            case "take":
                return self._models.take(message["name"], message["version"], data)._asdict(), b""
            case "put":
                return {"missing": self._put(message)}, b""
            case "listen":
                self._server.load()
                self._server.listen()
                self._listening = True
            case "start":
                gc.freeze()  # a full collection would otherwise visit everything that is loaded, and delay every call
                self._server.start()
                connections = self._config.limits.max_connections
                close_listeners_first(self._server.port, connections + OTHER_FILES)
            case "ping":
                return {"silent_s": self._server.silent_s()}, b""
            case "snapshot":
                return {}, encode_figures(self._server.take_figures(message["images"]))
            case "drain":
                self._drained = True
                return self._server.drain()._asdict(), encode_figures(self._server.take_figures(images=False))
            case _:
                raise ValueError(f"unknown request {kind!r}")
        return {}, b""

    def _configure(self, message: Message) -> None:
        """Import everything, and build the server."""
        number, workers = message["number"], message["workers"]
        level, form = message["log"]
        set_up_log(level, form, number)
        # onnxruntime and grpc, after the log: what they print is a record of this worker
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
        counters = SharedCounters(message["counters"], workers, number - 1)
        os.close(message["counters"])
        part = Part(workers, self._models, self._read_counts, partial(SharedCount, counters))
        self._server = Server(config, Trials(config.limits), self._stopping, part)

    def _put(self, message: Message) -> list[tuple[str, str, str]]:
        """Answer requests by other versions, and return those that are missing."""
        served = {name: [(*version,) for version in versions] for name, versions in message["served"].items()}
        entries = [Entry(*entry) for entry in message["entries"]]
        pending = [(*version,) for version in message["pending"]]
        return self._models.put(served, entries, pending, message["partial"])

    def _read_counts(self) -> Mapping[Version, Counts]:
        """The counters of all workers.

        Raises:
            DeadlineExpired: The supervisor has not answered in time.
            ServerLeaving: The supervisor has ended.
        """
        try:
            _, snapshot = self.channel.ask("counts", timeout_s=COUNTS_S)
        except ChannelLate as error:
            raise DeadlineExpired(f"the counters of all workers did not arrive within {COUNTS_S:g} s: retry") from error
        except ChannelClosed as error:
            raise ServerLeaving("the server is shutting down: call another server") from error
        return decode_figures(snapshot).counts
