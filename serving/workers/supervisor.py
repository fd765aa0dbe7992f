"""The process that ``evalmode serve`` runs if a server has several workers. It imports neither grpc nor onnxruntime."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import NoReturn

from evalmode.errors import DeadlineExpired
from serving.config import LogConfig, ServeConfig
from serving.logs import find_stream
from serving.part import describe_server, log_shutdown
from serving.process import CLOSE_S, exit_now, exit_within, listen_for_signals, log_phase
from serving.services.models import Entry, Models
from serving.threads import start_threads
from serving.trials import Trials
from serving.workers.channel import Message
from serving.workers.group import Settings, WorkerGroup
from serving.workers.port import hold_port
from serving.workers.repository import SharedSource
from serving.workers.state import State

log = logging.getLogger("serving")

LOADS = 2  # a version takes as long as its check, and the second session of a slow network as long again


def run(config: ServeConfig, log_config: LogConfig, announce: Callable[[str], object]) -> NoReturn:
    """Serve a model repository with several workers until a signal arrives, then drain and exit.

    The process exits with 0 if every request was answered, and with 1 if requests were cut.

    Args:
        config: The options of the server.
        log_config: The options of the log.
        announce: Called once with the addresses, two lines, when the server is ready.

    Raises:
        EvalmodeError: The server cannot start.
    """
    config.check_addresses()
    config.warn_of_plaintext()
    with hold_port(config.host, config.port) as port:
        supervisor = Supervisor(replace(config, port=port), log_config)
        try:
            supervisor.start(announce)
        except BaseException:
            supervisor.group.kill()
            raise
        supervisor.finish()


class Supervisor:
    """Several workers, and what there is once: signals, the repository, and metrics.

    Args:
        config: The options of the server, with its port.
        log_config: The options of the log.

    Attributes:
        group: The workers.
    """

    def __init__(self, config: ServeConfig, log_config: LogConfig) -> None:
        self._config = config
        self.group = WorkerGroup(make_settings(config, log_config), self._answer)
        self._stop = listen_for_signals(self.group.kill)
        self._trials = Trials(config.limits)

    def start(self, announce: Callable[[str], object]) -> None:
        """Start the workers, and return once they are ready or a signal has arrived.

        Args:
            announce: Called with the addresses when the server is ready.

        Raises:
            EvalmodeError: The server cannot start.
        """
        config = self._config
        self.group.start()
        self._trials.prepare()
        source = SharedSource(
            self.group,
            repository=config.repository,
            pinned=config.pinned,
            trials=self._trials,
            follow_links=config.follow_links,
            allow_uncertified=config.allow_uncertified,
        )
        self._models = Models.open_source(source, config.keep, self._stop)
        if not self._stop.is_set():
            log_phase("models loaded, checked and replayed")
            self._models.follow(self._publish)
            self.group.wait_until_ready(self._stop)
        if self._stop.is_set():
            return
        start_threads(1, "repository", lambda: self._models.watch(config.poll, self._stop))
        log_phase("listening")
        announce(describe_server(self._models, f"port {config.port}", None))

    def finish(self) -> NoReturn:
        """Wait for a signal, drain all workers, and exit."""
        self._stop.wait()
        limits = self._config.limits
        drain_s = limits.lame_duck + limits.grace + CLOSE_S
        exit_within(drain_s, self.group.kill)
        log_shutdown(limits.lame_duck)
        drained, complete = self.group.drain(drain_s)
        drained.log(limits.grace)
        self._trials.close()
        exit_now(0 if complete and not drained.cut else 1)

    def _publish(self, entries: list[Entry]) -> None:
        """Let all workers serve what the models are now."""
        self.group.publish(State.of(self._models.loaded, entries))  # type: ignore[arg-type]  the source loads no models

    def _answer(self, kind: str, message: Message, data: bytes) -> tuple[Message, bytes]:
        """Answer a request of a worker: a call of a client that concerns all workers."""
        name = message["name"]
        if kind == "unload":
            self._models.unload(name, message["version"])
            self.group.wait_until_published(None)
            return {}, b""
        timeout_s = message["timeout_s"]
        until = None if timeout_s is None else time.monotonic() + timeout_s
        self._models.load(name, timeout_s)
        if not self.group.wait_until_published(None if until is None else until - time.monotonic()):
            raise DeadlineExpired(f"{name} is loaded, but not all workers answer by it yet")
        return {}, b""


def make_settings(config: ServeConfig, log_config: LogConfig) -> Settings:
    """Return what all workers are started with.

    Args:
        config: The options of the server.
        log_config: The options of the log.
    """
    options = {one.name: getattr(config, one.name) for one in fields(config) if one.name != "limits"}
    message = {
        "options": options,
        "limits": asdict(config.limits),
        "log": [log_config.log_level, log_config.log_format],
        "workers": config.worker_count,
    }
    load_s = LOADS * config.limits.load_seconds
    return Settings(config.worker_count, json.loads(json.dumps(message, default=str)), load_s, find_stream())
