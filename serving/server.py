"""A gRPC server: built from its configuration, then loaded, started, drained and closed."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from evalmode.errors import UsageError
from evalmode.runtime.cpus import count_cpus
from serving.config import ServeConfig
from serving.engine.decodes import Decodes
from serving.engine.executor import Executor
from serving.engine.memory import choose_decode_bytes
from serving.engine.scheduler import Scheduler
from serving.engine.shared_limits import Alone, Count, SharedLimit, SharedSlots
from serving.part import Drained, Part, describe_server, find_obstacle, log_shutdown
from serving.services.access import Access, Tokens
from serving.services.backend import Backend
from serving.services.classifier import Classifier
from serving.services.figures import Figures
from serving.services.inference import Inference
from serving.services.loaded import Entry, LoadedModels
from serving.services.metrics import Metrics
from serving.services.models import Models
from serving.services.open_inference import OpenInference
from serving.services.processes import ProcessMetrics
from serving.services.statistics import Statistics, take_figures
from serving.threads import join_threads, start_threads
from serving.transports.addresses import UNIX, find_local, join_address
from serving.transports.grpcio import GrpcioServer
from serving.transports.liveness import Liveness
from serving.transports.metrics import MetricsServer, Probes
from serving.transports.own_health import OwnHealth
from serving.transports.tls import Certificates
from serving.trials import Trials

if TYPE_CHECKING:
    from serving.transports.native import NativeServer

log = logging.getLogger("serving")

MIB = 1024 * 1024
JOIN_S = 5.0  # for the threads of a closed server to end


class Server:
    """A gRPC server. Its methods are called in the order ``load``, ``listen``, ``start``, ``drain``, ``close``.

    Args:
        config: Its options.
        trials: Checks artifacts in child processes before they are loaded.
        stopping: Set by the server when it stops. If it is set earlier, ``load`` returns early.
        part: What the supervisor of several workers gives the server of each; None: it is the only one.
    """

    def __init__(
        self, config: ServeConfig, trials: Trials, stopping: threading.Event, part: Part | None = None
    ) -> None:
        self._config = config
        self._part = part
        self._trials = trials
        self._stopping = stopping
        self._started, self._stopped = threading.Event(), threading.Event()
        self._stop_once = threading.Lock()
        self._statistics = Statistics()
        self._resources = ExitStack()
        self._threads: list[threading.Thread] = []
        self._resources.callback(trials.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({self.address!r})" if hasattr(self, "_transport") else "Server(not listening)"

    @property
    def address(self) -> str:
        """The address for clients on this machine, such as ``127.0.0.1:8001`` or ``unix:PATH``."""
        return find_local(join_address(self._config.host, self._transport.port), self._transport.port)

    @property
    def metrics_address(self) -> str:
        """The address of metrics and probes for clients on this machine, such as ``127.0.0.1:8002``.

        Raises:
            UsageError: The server has no metrics.
        """
        if self._config.no_metrics:
            raise UsageError("the server was started with no_metrics")
        port = self._metrics.port
        return find_local(join_address(self._config.metrics_host, port), port)

    def describe(self) -> str:
        """Return two lines: the models and where they are served, and where metrics are served."""
        host = self._config.host
        where = join_address(host, 0) if host.startswith(UNIX) else f"port {self._transport.port}"
        return describe_server(self._models, where, None if self._config.no_metrics else self._metrics.port)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._transport.port

    def silent_s(self) -> float:
        """Seconds since it last answered a health check of its own. A server alone without metrics sends none."""
        return self._liveness.silent_s()

    def take_figures(self, images: bool = True) -> Figures:
        """Take the figures of this process.

        Args:
            images: See ``take_figures`` of the statistics.
        """
        return take_figures(self._models, self._statistics, self._transport.load(), images)

    def load(self) -> None:
        """Load the newest version of every model. Returns early if ``stopping`` is set.

        Raises:
            ArtifactInvalid: The repository holds no model that can be loaded.
            ProviderUnavailable: The execution provider does not work on this machine.
        """
        config = self._config
        self._models: LoadedModels
        if self._part:
            self._models = self._part.models
            return
        self._models = self._repository = Models.open(
            config.repository,
            config.pinned,
            config.keep,
            self._stopping,
            trials=self._trials,
            model_name=config.model_name,
            follow_links=config.follow_links,
            provider=config.provider,
            allow_uncertified=config.allow_uncertified,
            replay_s=config.limits.load_seconds,
            lone_threads=1 if config.one_thread else count_cpus(),
        )
        self._resources.callback(self._models.close)

    def listen(self) -> None:
        """Build the services, and bind the addresses.

        Raises:
            AddressUnavailable: An address cannot be bound.
            CertificatesInvalid: The TLS files are not usable.
            ThreadsUnavailable: The system cannot start enough threads.
            TokensInvalid: A token file is not usable.
            UsageError: The transport is not installed.
        """
        self._transport = self._open_transport(self._make_backend())
        self._resources.callback(self._transport.close)
        if self._config.no_metrics and not self._part:
            return
        own_health = OwnHealth(self._transport.local_address)
        self._resources.callback(own_health.close)
        self._liveness = Liveness(own_health.check)
        self._liveness.start()
        self._resources.callback(self._liveness.close)
        if not self._part:
            self._metrics = self._open_metrics()

    def start(self) -> None:
        """Answer requests, report SERVING, and load new versions as they are published."""
        if not self._config.limits.default_deadline:
            log.info("calls without a deadline may wait as long as the queue is: set --default-deadline to limit them")
        self._models.follow(self._show)
        self._transport.start()
        self._started.set()
        if not self._part:
            self._threads += start_threads(1, "repository", self._watch_repository)

    def wait(self) -> None:
        """Block until another thread has stopped the server."""
        self._stopped.wait()

    def stop(self) -> int:
        """Drain and close the server. Further calls do nothing.

        Returns:
            The number of requests that were cut after ``grace`` seconds.
        """
        with self._stop_once:
            if self._stopped.is_set():
                return 0
            try:
                drained = self.drain()
                drained.log(self._config.limits.grace)
                return drained.cut
            finally:
                self.close()

    def drain(self) -> Drained:
        """Report NOT_SERVING, answer for ``lame_duck`` seconds, then wait ``grace`` seconds for requests in flight."""
        limits = self._config.limits
        self._stopping.set()
        if not self._part:
            log_shutdown(limits.lame_duck)
        self._transport.announce_shutdown()
        time.sleep(limits.lame_duck)
        return Drained(self._transport.drain(limits.grace), self._statistics.answered)

    def close(self) -> None:
        """Release everything that the server holds, and wait for its threads."""
        self._stopping.set()
        self._resources.close()
        join_threads(self._threads, JOIN_S)
        self._stopped.set()

    def _make_backend(self) -> Backend:
        """Build the engine and the services."""
        config, models = self._config, self._models
        limits, slots = config.limits, count_cpus()
        decode_bytes, source = choose_decode_bytes(limits.max_decode_bytes)
        workers = self._part.workers if self._part else 1
        decode_bytes //= workers
        shared = f", shared by {workers} workers" if self._part else ""
        log.info("images are decoded within %s MiB: %s%s", decode_bytes // MIB, source, shared)
        count = self._count_in_all
        decodes = Decodes(SharedSlots(slots, "large_slots", count), decode_bytes)
        in_flight = SharedLimit(max(workers, slots) + limits.max_queue, count("in_flight"))
        scheduler = Scheduler(SharedSlots(slots, "slots", count), limits.max_batch, decodes, in_flight)
        self._executor = Executor(scheduler, self._statistics.count_run)
        self._resources.callback(self._executor.close)
        self._threads += self._executor.threads
        if self._part:
            closed = threading.Event()  # not ``_stopping``: requests are answered during a shutdown, too
            self._resources.callback(closed.set)
            self._threads += start_threads(1, "freed-slots", lambda: self._executor.take_freed_slots(closed))
        inference = Inference(self._executor, self._statistics, limits.default_deadline)
        return Backend(
            Classifier(models, limits, decodes),
            OpenInference(
                *(models, inference, limits, config.allow_nonfinite, config.enable_control),
                self._part.read_counts if self._part else None,
            ),
            inference,
            limits,
            self._open_access(),
            not config.no_reflection,
            count,
        )

    def _count_in_all(self, name: str) -> Count:
        """Return what counts something in all workers, or in this process if it is the only one."""
        return self._part.count(name) if self._part else Alone(name)

    def _open_access(self) -> Access | None:
        """Read the token files, and again when they change. Returns None if no option names one."""
        config = self._config
        if not (config.tokens or config.control_tokens):
            return None
        predict, control = (Tokens(path) if path else None for path in (config.tokens, config.control_tokens))
        access = Access(predict, control)
        access.follow()
        self._resources.callback(access.close)
        return access

    def _open_transport(self, backend: Backend) -> GrpcioServer | NativeServer:
        """Bind the address of the gRPC server."""
        config, reuse_port = self._config, self._part is not None
        address = join_address(config.host, config.port)
        if config.transport == "native":
            try:
                from serving.transports.native import NativeServer
            except ModuleNotFoundError as error:
                raise UsageError(f"--transport native: {error}: pip install 'evalmode[native]'") from error
            return NativeServer(backend, address, reuse_port)
        credentials = None
        if config.tls_cert and config.tls_key:
            certificates = Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)
            self._resources.callback(certificates.close)
            credentials = certificates.credentials
        return GrpcioServer(backend, address, credentials, reuse_port=reuse_port)

    def _open_metrics(self) -> MetricsServer:
        """Bind the address of the metrics."""
        config, models = self._config, self._models
        probes = Probes(
            lambda: bool(models.loaded) and not self._stopping.is_set(),
            lambda: find_obstacle(self._stopping, models) if self._started.is_set() else "starting",
            self._liveness,
        )
        figures = Metrics(self.take_figures, config.label_metrics, probes.is_ready)
        metrics = MetricsServer(
            (figures, ProcessMetrics(lambda: [os.getpid()])),
            probes,
            config.metrics_host,
            config.metrics_port,
        )
        self._resources.callback(metrics.close)
        return metrics

    def _show(self, entries: list[Entry]) -> None:
        """Update the health of the models, and forget the statistics of those that are no longer loaded."""
        self._transport.show(entries)
        self._statistics.keep(self._models.loaded)
        self._executor.serve(self._models.loaded)

    def _watch_repository(self) -> None:
        self._repository.watch(self._config.poll, self._stopping)
