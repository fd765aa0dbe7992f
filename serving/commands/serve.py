"""``evalmode serve``: builds the server from its parts and sees it through its life."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from serving.commands.logs import set_up_log, shut_down_log
from serving.commands.paths import ExistingPath
from serving.errors import EvalmodeError, UsageError
from serving.limits import Limits
from serving.memory import choose_request_bytes, return_large_blocks
from serving.threads import start_threads
from serving.transports.addresses import METRICS_PORT, UNIX, check_address, find_metrics_host, is_loopback, join_address

if TYPE_CHECKING:
    from serving.services.models import Entry, Models
    from serving.services.statistics import Statistics
    from serving.transports.grpcio import GrpcioServer
    from serving.transports.native import NativeServer

log = logging.getLogger("serving")

READ = time.perf_counter()
_FILE = ExistingPath(dir_okay=False, path_type=Path)
END_S = 0.9  # after the grace: for clients to close their connections


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per row of the limits table."""
    for limit in reversed(fields(Limits)):
        row = limit.metadata
        command = click.option(
            f"--{limit.name.replace('_', '-')}",
            type=click.IntRange(row["minimum"], row["maximum"]),
            default=limit.default,
            help=f"{row['what']}; beyond it: {row['beyond']}",
        )(command)
    return command


class _Serve(click.Command):
    """Says what is wrong as the log says it: as JSON, where the log is."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        form = os.environ.get("EVALMODE_SERVE_LOG_FORMAT", "")
        for given, following in zip(args, [*args[1:], ""], strict=False):
            option, _, value = given.partition("=")
            form = (value or following) if option == "--log-format" else form
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if form != "json":
                raise
            set_up_log("info", form)
            log.critical("%s", error.format_message())
            raise click.exceptions.Exit(error.exit_code) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EvalmodeError as error:
            if ctx.params["log_format"] != "json":
                shut_down_log()  # so that the error is the last line
                raise
            log.critical("%s", error)
            ctx.exit(error.exit_code)


@click.command(cls=_Serve)
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="model repository to serve")
@click.option("--host", default="127.0.0.1", help="interface to listen on: an address, a name, or unix:PATH")
@click.option("--port", type=click.IntRange(0, 65535), default=8001, help="port; 0 takes a free one")
@click.option(
    "--transport",
    type=click.Choice(["grpcio", "native"]),
    default="grpcio",
    help="how requests arrive; native is faster, young, and takes no TLS",
)
@click.option(
    "--allow-unbounded-messages",
    is_flag=True,
    help="let native listen beyond this machine: it inflates compressed messages without a limit, and holds whole ones",
)
@click.option("--provider", type=click.Choice(["cpu", "cuda", "auto"]), default="cpu", help="where the network runs")
@click.option("--allow-uncertified", is_flag=True, help="serve files that have no certificate, one image at a time")
@click.option("--allow-nonfinite", is_flag=True, help="let NaN and infinity in floating-point inputs through")
@click.option("--tls-cert", type=_FILE, help="PEM: the server's certificate and those that lead to its authority")
@click.option("--tls-key", type=_FILE, help="PEM: the private key of --tls-cert")
@click.option("--tls-client-ca", type=_FILE, help="PEM: clients need a certificate of one of these authorities")
@click.option("--tokens", type=_FILE, help="callers need one of these bearer tokens: one a line, then until when")
@click.option("--enable-control", is_flag=True, help="let clients load and unload models, with --control-tokens")
@click.option("--control-tokens", type=_FILE, help="who loads and unloads models needs one of these; may predict, too")
@click.option("--no-reflection", is_flag=True, help="do not tell callers what can be called")
@click.option("--model", multiple=True, metavar="NAME@VERSION", help="serve this version of a model, not the newest")
@click.option("--follow-links", is_flag=True, help="serve files outside the repository that symbolic links lead to")
@click.option("--poll", type=click.FloatRange(0.05), default=1.0, help="seconds between two looks at the repository")
@click.option("--keep", type=click.IntRange(1), default=2, help="versions of a model that stay loaded, to go back to")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), default=8002, help="/metrics, /healthz and /livez; 0: a free one"
)
@click.option(
    "--label-metrics",
    type=click.IntRange(0),
    default=1000,
    help="labels of a model with a counter of their own in the metrics, the first that are answered",
)
@click.option("--no-metrics", is_flag=True, help="no metrics, no /healthz, no /livez")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="of the log, on stderr")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@_limit_options
def serve(
    repository: Path,
    host: str,
    port: int,
    transport: str,
    allow_unbounded_messages: bool,
    provider: str,
    allow_uncertified: bool,
    allow_nonfinite: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    tokens: Path | None,
    enable_control: bool,
    control_tokens: Path | None,
    no_reflection: bool,
    metrics_port: int,
    label_metrics: int,
    no_metrics: bool,
    log_format: str,
    log_level: str,
    model: tuple[str, ...],
    follow_links: bool,
    poll: float,
    keep: int,
    **limits: int,
) -> None:
    """Serve the newest version of every model in a repository over gRPC, and follow what is published there.

    The first SIGTERM, SIGINT or SIGHUP: NOT_SERVING, still answering for --lame-duck seconds, then at most --grace
    seconds for requests in flight, then exit 0 (1 if any were cut). The second: exit at once.
    """
    set_up_log(log_level, log_format)
    metrics_host = find_metrics_host(host)
    _check_addresses(transport, host, port, None if no_metrics else (metrics_host, metrics_port))
    if transport == "native" and not is_loopback(host) and not allow_unbounded_messages:
        raise UsageError(
            f"--transport native on {host}: it inflates compressed messages without a limit, 8 MB to 8 GB: "
            "use --transport grpcio, or keep strangers out and add --allow-unbounded-messages"
        )
    _check_security(transport, host, (tls_cert, tls_key, tls_client_ca), tokens, enable_control, control_tokens)
    stop = _listen_for_signals()
    return_large_blocks()
    from serving.trials import Trials

    bounds = _fit_requests(Limits(**limits))
    trials = Trials(bounds)
    trials.prepare()  # it imports while this process does
    from serving.batching import Batcher, count_cpus, count_slots
    from serving.decoding import DecodeBudget
    from serving.memory import choose_decode_bytes
    from serving.services.access import Access, Tokens
    from serving.services.classifier import Classifier
    from serving.services.inference import Inference
    from serving.services.models import Models
    from serving.services.open_inference import OpenInference
    from serving.services.statistics import Statistics

    _log_phase("imports")
    statistics, pinned = Statistics(), dict(map(_read_pin, model))
    load_options = {"provider": provider, "allow_uncertified": allow_uncertified, "replay_s": bounds.load_seconds}
    models = Models.open(repository, pinned, keep, stop, trials=trials, follow_links=follow_links, **load_options)
    if stop.is_set():
        models.close()
        _exit_now(0)
    _log_phase("models loaded, checked and replayed")
    batcher = Batcher(count_slots(models.served.values()), bounds, statistics.count_run)
    decode_bytes, source = choose_decode_bytes(bounds.max_decode_bytes)
    log.info("images are decoded within %s MiB: %s", decode_bytes // 2**20, source)
    budget = DecodeBudget(count_cpus(), decode_bytes)
    inference = Inference(batcher, budget, statistics)
    ours = Classifier(models, bounds, budget)
    theirs = OpenInference(models, batcher.slots, bounds, statistics, budget, allow_nonfinite, enable_control)
    access = None
    if tokens or control_tokens:
        predict, control = (Tokens(path) if path else None for path in (tokens, control_tokens))
        access = Access(predict, control)
        access.follow()
    if transport == "native":
        try:
            from serving.transports.native import NativeServer
        except ModuleNotFoundError as error:
            raise UsageError(f"--transport native: {error}: pip install 'evalmode[native]'") from error
        server: GrpcioServer | NativeServer = NativeServer(
            *(ours, theirs, inference, host, port, bounds, access), reflect=not no_reflection
        )
    else:
        from serving.transports.grpcio import GrpcioServer

        credentials = None
        if tls_cert and tls_key:
            from serving.transports.tls import make_credentials

            credentials = make_credentials(tls_cert, tls_key, tls_client_ca)
        server = GrpcioServer(
            *(ours, theirs, inference, join_address(host, port), bounds, access, credentials), reflect=not no_reflection
        )
    announcement = "no metrics"
    if not no_metrics:
        from serving.services.metrics import Metrics
        from serving.transports.liveness import Liveness
        from serving.transports.metrics import MetricsServer

        metrics = Metrics(models, statistics, server.load, label_metrics)
        liveness = Liveness(server.local_address)
        measured = MetricsServer(
            *(metrics, lambda: bool(models.loaded) and not stop.is_set(), liveness, metrics_host, metrics_port)
        )
        liveness.start()
        announcement = f"metrics on port {measured.port}"

    def show(entries: list[Entry]) -> None:
        server.show(entries)
        statistics.keep(models.loaded)

    models.follow(show)
    where = join_address(host, port) if host.startswith(UNIX) else f"port {server.port}"
    _run(
        server, models, f"serving {', '.join(models.served)} on {where}\n{announcement}", poll, bounds, stop, statistics
    )


def _check_addresses(transport: str, host: str, port: int, metrics: tuple[str, int] | None) -> None:
    """Refuse addresses that cannot be listened on, before anything is loaded.

    Raises:
        UsageError: the transport cannot do it, or the ports are one.
        AddressUnavailable: see ``check_address``.
    """
    if host.startswith(UNIX) and transport == "native":
        raise UsageError("--transport native takes no unix:PATH: use --transport grpcio, or --host 127.0.0.1")
    if metrics and port and port == metrics[1] and not host.startswith(UNIX):
        raise UsageError(f"--port and --metrics-port are both {port}: take two")
    check_address(host, port)
    if metrics:
        check_address(*metrics, METRICS_PORT)


def _fit_requests(limits: Limits) -> Limits:
    """Limit requests to what fits into the memory, unless an option or the environment says how large they may be."""
    source = click.get_current_context().get_parameter_source("max_request_bytes")
    if source is not click.core.ParameterSource.DEFAULT:
        return limits
    chosen = choose_request_bytes(limits.max_request_bytes)
    if chosen.limit_bytes < limits.max_request_bytes:
        log.info("requests are limited to %s bytes: %s; --max-request-bytes sets another limit", *chosen)
    return replace(limits, max_request_bytes=chosen.limit_bytes)


def _check_security(
    transport: str,
    host: str,
    tls: tuple[Path | None, Path | None, Path | None],
    tokens: Path | None,
    enable_control: bool,
    control_tokens: Path | None,
) -> None:
    """Refuse options that do not fit together, warn of what strangers may read.

    Raises:
        UsageError: one option lacks another, or the transport cannot do it.
    """
    certificate, key, client_ca = tls
    if any(tls) and transport == "native":
        raise UsageError("--transport native takes no TLS: use --transport grpcio, or a proxy that ends TLS before it")
    if bool(certificate) != bool(key) or (client_ca and not certificate):
        raise UsageError("TLS needs both --tls-cert and --tls-key; --tls-client-ca is one more")
    if enable_control != bool(control_tokens):
        raise UsageError("loading and unloading by calls needs both --enable-control and --control-tokens FILE")
    if not is_loopback(host) and not certificate:
        what = "images, answers and tokens" if tokens or control_tokens else "images and answers"
        log.warning("%s is open to other machines without TLS: %s can be read on the way", host, what)


def _read_pin(text: str) -> tuple[str, int]:
    """NAME@VERSION.

    Raises:
        UsageError: it is something else.
    """
    name, _, version = text.rpartition("@")
    if not name or not version.isdecimal():
        raise UsageError(f"--model {text!r}: say NAME@VERSION, such as cats@3")
    return name, int(version)


def _listen_for_signals() -> threading.Event:
    """An event that the first SIGTERM, SIGINT or SIGHUP sets; the second ends the process.

    A thread waits for them: a handler would run inside whatever the main thread does, such as in ``Event.wait``, and
    wait for ever for a lock which that thread holds. A SIGHUP that is ignored, as nohup has it, stays so.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        os.read(reader, 1)
        stop.set()
        os.read(reader, 1)
        os._exit(1)  # at once: whatever else is done here may wait

    start_threads(1, "signals", listen)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)  # Python writes the number to the pipe
    return stop


def _run(
    server: GrpcioServer | NativeServer,
    models: Models,
    announcement: str,
    poll_s: float,
    limits: Limits,
    stop: threading.Event,
    statistics: Statistics,
) -> None:
    """Serve what the repository holds until told to stop, then drain."""
    gc.freeze()  # what is loaded stays: else collecting garbage looks at all of it, and every call waits
    server.start()
    _log_phase("listening")
    click.echo(announcement)
    threading.Thread(target=models.watch, args=(poll_s, stop), name="repository", daemon=True).start()
    stop.wait()
    _end_by(limits.lame_duck + limits.grace + END_S)
    log.info("shutting down: NOT_SERVING, answering for %s s more", limits.lame_duck)
    server.announce_shutdown()
    time.sleep(limits.lame_duck)
    cut = server.drain(limits.grace)
    if cut:
        log.error("%s requests did not finish within %s s and were cut", cut, limits.grace)
        _exit_now(1)
    log.info("all requests answered: %s", statistics.answered)
    _exit_now(0)


def _end_by(seconds: float) -> None:
    """End the process by then, whatever any thread of it waits for."""
    backstop = threading.Timer(seconds, os._exit, [1])
    backstop.daemon = True
    backstop.start()


def _log_phase(name: str) -> None:
    """Say what of the start is done, and how long after this command was read."""
    log.debug("%.3f s: %s", time.perf_counter() - READ, name)


def _exit_now(code: int) -> NoReturn:
    """Leave without waiting for request threads, as the interpreter otherwise would."""
    shut_down_log()
    sys.stdout.flush()
    os._exit(code)
