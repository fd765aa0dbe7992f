"""The process that ``evalmode serve`` runs if a server has several workers. It imports neither grpc nor onnxruntime."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import NoReturn

from evalmode.errors import ArtifactInvalid, DeadlineExpired
from serving.config import LogConfig, ServeConfig
from serving.logs import find_stream
from serving.part import Drained, describe_server, find_obstacle, log_shutdown
from serving.process import CLOSE_S, exit_now, exit_within, listen_for_signals, log_phase
from serving.services.loaded import Entry
from serving.services.metrics import Metrics
from serving.services.models import Models
from serving.services.processes import ProcessMetrics
from serving.threads import start_threads
from serving.transports.liveness import Liveness
from serving.transports.metrics import MetricsServer, Probes
from serving.trials import Trials
from serving.workers.channel import Message
from serving.workers.counters import SharedCounters, create_counters
from serving.workers.gathering import Gathering
from serving.workers.group import Settings, WorkerGroup
from serving.workers.port import hold_port
from serving.workers.repository import SharedSource
from serving.workers.snapshots import encode_figures
from serving.workers.state import FileVersion, State

log = logging.getLogger("serving")

REPORT_S = 0.5  # to log what became of the requests
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
            is_ready = supervisor.start(announce)
        except BaseException:
            supervisor.kill()
            raise
        if not is_ready:
            supervisor.kill()
            exit_now(0)
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
        count, memory = config.worker_count, create_counters(config.worker_count)
        self._counters = SharedCounters(memory, count)
        self._gathering = Gathering(count)
        settings = make_settings(config, log_config, memory)
        self.group = WorkerGroup(settings, self._answer, self._quarantine, self._forget)
        self._trials = Trials(config.limits)
        self._stop = listen_for_signals(self.kill)

    def start(self, announce: Callable[[str], object]) -> bool:
        """Start the workers.

        Args:
            announce: Called with the addresses when the server is ready.

        Returns:
            Whether the server is ready; otherwise a signal has arrived before.

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
            model_name=config.model_name,
            follow_links=config.follow_links,
            allow_uncertified=config.allow_uncertified,
        )
        self._models = Models.open_source(source, config.keep, self._stop)
        if not self._stop.is_set():
            log_phase("models loaded, checked and replayed")
            self._models.follow(self._publish)
            self.group.wait_until_ready(self._stop)
        if self._stop.is_set():
            return False
        metrics_port = 0 if config.no_metrics else self._open_metrics()
        start_threads(1, "repository", lambda: self._models.watch(config.poll, self._stop))
        log_phase("listening")
        announce(describe_server(self._models, f"port {config.port}", None if config.no_metrics else metrics_port))
        return True

    def finish(self) -> NoReturn:
        """Wait for a signal, drain all workers, and exit."""
        self._stop.wait()
        limits = self._config.limits
        drain_s = limits.lame_duck + limits.grace + CLOSE_S
        exit_within(drain_s, self.kill)
        log_shutdown(limits.lame_duck)
        answers = self.group.drain(drain_s - REPORT_S)
        cut = sum(answer[0]["cut"] for answer in answers.values() if answer)
        answered = self._gathering.finish((number, answer[1]) for number, answer in answers.items() if answer)
        self.group.kill()  # not before: what workers answered would count again once they have ended
        lost = [number for number, answer in answers.items() if not answer]
        for number in lost:
            log.error("worker %s ended before it was drained", number)
        Drained(cut, answered).log(limits.grace)
        self._trials.close()
        exit_now(1 if cut or lost else 0)

    def kill(self) -> None:
        """Kill all processes of the server but this one."""
        self.group.kill()
        self._trials.close()

    def _open_metrics(self) -> int:
        """Serve metrics and health over HTTP, and return the port."""
        config, group = self._config, self.group
        liveness = Liveness(group.check)
        probes = Probes(
            lambda: group.is_ready() and bool(self._models.loaded) and not self._stop.is_set(),
            self._find_obstacle,
            liveness,
        )
        server = MetricsServer(
            (
                Metrics(lambda: self._gathering.read(group), config.label_metrics, probes.is_ready),
                ProcessMetrics(lambda: [os.getpid(), *group.list_processes()]),
            ),
            probes,
            config.metrics_host,
            config.metrics_port,
        )
        liveness.start()
        return server.port

    def _find_obstacle(self) -> str:
        """Return why the server answers no requests; "" if at least one worker answers."""
        return find_obstacle(self._stop, self._models) or ("" if self.group.count_ready() else "no worker is ready")

    def _forget(self, number: int) -> None:
        """Keep the figures of a worker whose process has ended, and release what it held."""
        self._gathering.end(number)
        self._counters.clear(number - 1)

    def _quarantine(self, version: FileVersion, error: ArtifactInvalid) -> None:
        """Replace a version that workers cannot load any more by another one."""
        name, number, _ = version
        self._models.quarantine((name, int(number)), error)

    def _publish(self, entries: list[Entry]) -> None:
        """Let all workers serve what the models are now."""
        self.group.publish(State.of(self._models, entries))

    def _answer(self, kind: str, message: Message, data: bytes) -> tuple[Message, bytes]:
        """Answer a request of a worker: a call of a client that concerns all workers."""
        if kind == "counts":
            return {}, encode_figures(self._gathering.read(self.group, images=False))
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


def make_settings(config: ServeConfig, log_config: LogConfig, counters: int) -> Settings:
    """Return what all workers are started with.

    Args:
        config: The options of the server.
        log_config: The options of the log.
        counters: The file descriptor of the shared counters.
    """
    options = {one.name: getattr(config, one.name) for one in fields(config) if one.name != "limits"}
    message = {
        "options": options,
        "limits": asdict(config.limits),
        "log": [log_config.log_level, log_config.log_format],
        "workers": config.worker_count,
        "counters": counters,
    }
    load_s = LOADS * config.limits.load_seconds
    sent = json.loads(json.dumps(message, default=str))
    return Settings(config.worker_count, sent, load_s, find_stream(), counters)
