"""The configuration of a server, and the options of ``evalmode serve`` that it consists of."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from evalmode.errors import UsageError
from evalmode.limits import Limits
from evalmode.options import check_names, convert_fields, option
from evalmode.runtime.cpus import count_cpus
from evalmode.runtime.provider import CHOICES
from serving.engine.memory import choose_request_bytes
from serving.transports.addresses import METRICS_PORT, UNIX, check_address, find_metrics_host, is_loopback

log = logging.getLogger("serving")

MAX_PORT = 65535
MAX_WORKERS = 256
AUTO = "auto"
VARIABLE_PREFIX = "EVALMODE_SERVE_"  # of the environment variables of the options: EVALMODE_SERVE_PORT


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The configuration of a server: validated once, then passed whole.

    Each field is an option of ``evalmode serve``, and so is each field of ``limits``.

    Raises:
        UsageError: A value is outside its range, or options do not fit together.
    """

    repository: Path = field(
        metadata={
            "what": "model repository: a folder with NAME/VERSION/model.onnx; or of one model, with VERSION/model.onnx "
            "or model.onnx; or a file"
        }
    )
    host: str = option("127.0.0.1", "interface to listen on: an address, a host name, or unix:PATH")
    port: int = option(8001, "port to listen on; 0: a free port", minimum=0, maximum=MAX_PORT)
    transport: str = option(
        "grpcio",
        "gRPC implementation; native is faster and less mature, and does not support TLS",
        choices=("grpcio", "native"),
    )
    workers: str = option(
        "1", "processes that share the port; auto: one per CPU that this process may use", metavar="N|auto"
    )
    allow_unbounded_messages: bool = option(
        False,
        "allow native to listen on other interfaces than loopback, although it buffers whole messages and decompresses "
        "them without a limit",
    )
    provider: str = option("cpu", "execution provider; auto: cuda if it is available", choices=CHOICES)
    one_thread: bool = option(
        False,
        "run networks on one thread also while only one request is in flight; saves the memory of a second session",
    )
    allow_uncertified: bool = option(False, "serve files without a certificate, one input at a time")
    allow_nonfinite: bool = option(False, "accept NaN and infinity in floating-point inputs")
    tls_cert: Path | None = option(
        None, "PEM file: the server certificate, then the intermediate certificates", path="file"
    )
    tls_key: Path | None = option(None, "PEM file: the private key of --tls-cert", path="file")
    tls_client_ca: Path | None = option(
        None, "PEM file: require client certificates issued by one of these authorities", path="file"
    )
    tokens: Path | None = option(
        None, "file of bearer tokens, one per line with an optional expiry; each call must send one", path="file"
    )
    enable_control: bool = option(False, "allow clients to load and unload models; needs --control-tokens")
    control_tokens: Path | None = option(
        None, "file of bearer tokens that allow loading and unloading models, and predictions", path="file"
    )
    no_reflection: bool = option(False, "disable server reflection")
    model: tuple[str, ...] = option(
        (), "serve this version of a model instead of the newest; repeatable", metavar="NAME@VERSION"
    )
    model_name: str = option(
        "",
        "name of the only model, if --repository has no folders of models; default: the name of the folder or file",
        metavar="NAME",
    )
    follow_links: tuple[str, ...] = option(
        (),
        "follow symbolic links that lead out of the repository if they lead into this folder; repeatable; without DIR: "
        "into any folder",
        metavar="DIR",
        path="folder",
        bare="/",
    )
    poll: float = option(1.0, "interval between two scans of the repository, seconds", minimum=0.05)
    keep: int = option(2, "versions of a model that stay loaded, for rollback", minimum=1)
    metrics_port: int = option(
        8002, "port of /metrics, /readyz, /healthz and /livez; 0: a free port", minimum=0, maximum=MAX_PORT
    )
    label_metrics: int = option(
        1000,
        "labels per model with a counter of their own in the metrics, in the order of their first prediction",
        minimum=0,
    )
    no_metrics: bool = option(False, "disable /metrics, /readyz, /healthz and /livez")
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        convert_fields(self)
        self._check_transport()
        self._check_security()
        self._check_workers()
        if not self.no_metrics and self.port and self.port == self.metrics_port and not self.host.startswith(UNIX):
            raise UsageError(f"--port and --metrics-port are both {self.port}: choose two different ports")
        pinned: dict[str, int] = {}
        for name, version in map(_read_pin, self.model):
            if pinned.setdefault(name, version) != version:
                raise UsageError(f"--model: {name} is pinned to the versions {pinned[name]} and {version}: choose one")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ServeConfig:
        """Make a configuration from options by name.

        Without ``max_request_bytes``, its default is lowered to what fits into the memory of this machine.

        Args:
            options: The options that were set, by the names of the fields of this class and of ``Limits``.

        Returns:
            The configuration, with the defaults of all other options.

        Raises:
            UsageError: An option is unknown, ``repository`` is missing, a value is invalid, or options do not fit
                together.
        """
        check_names(cls, options, "a server")
        if "repository" not in options:
            raise UsageError("a server needs the option 'repository'")
        bounds = {limit.name for limit in fields(Limits)}
        limits = Limits(**{name: value for name, value in options.items() if name in bounds})
        config = cls(**{name: value for name, value in options.items() if name not in bounds}, limits=limits)
        if "max_request_bytes" not in options:
            config = replace(config, limits=_fit_requests(limits, config.worker_count))
        return config

    @property
    def worker_count(self) -> int:
        """The number of processes that share the port."""
        if self.workers != AUTO:
            return int(self.workers)
        return 1 if self.host.startswith(UNIX) or sys.platform != "linux" else count_cpus()

    @property
    def pinned(self) -> dict[str, int]:
        """The version of each model in ``model``, by name.

        Raises:
            UsageError: An entry is not NAME@VERSION.
        """
        return dict(map(_read_pin, self.model))

    @property
    def metrics_host(self) -> str:
        """The interface that metrics listen on: loopback if gRPC listens on a Unix socket."""
        return find_metrics_host(self.host)

    def check_addresses(self) -> None:
        """Check that the addresses can be bound, before anything is loaded.

        Raises:
            AddressUnavailable: An address cannot be bound.
        """
        check_address(self.host, self.port)
        if not self.no_metrics:
            check_address(self.metrics_host, self.metrics_port, METRICS_PORT)

    def warn_of_plaintext(self) -> None:
        """Log a warning if other machines can connect without TLS."""
        if not is_loopback(self.host) and not self.tls_cert:
            what = "images, answers and tokens" if self.tokens or self.control_tokens else "images and answers"
            log.warning("%s accepts connections from other machines without TLS: %s are not encrypted", self.host, what)

    def _check_transport(self) -> None:
        """Refuse what the native transport does not support."""
        if self.transport != "native":
            return
        if self.host.startswith(UNIX):
            raise UsageError(
                "--transport native does not support unix:PATH: use --transport grpcio, or --host 127.0.0.1"
            )
        if self.tls_cert or self.tls_key or self.tls_client_ca:
            raise UsageError(
                "--transport native does not support TLS: use --transport grpcio, or a proxy that terminates TLS"
            )
        if not is_loopback(self.host) and not self.allow_unbounded_messages:
            raise UsageError(
                f"--transport native on {self.host} decompresses messages without a limit, 8 MB to 8 GB: use "
                "--transport grpcio, or admit trusted clients only and add --allow-unbounded-messages"
            )

    def _check_workers(self) -> None:
        """Refuse a number of workers that is none, or that cannot share the port."""
        if self.workers == AUTO:
            return
        if not (self.workers.isascii() and self.workers.isdecimal() and 1 <= int(self.workers) <= MAX_WORKERS):
            raise UsageError(f"--workers {self.workers!r}: use a number from 1 to {MAX_WORKERS}, or {AUTO}")
        if self.worker_count > 1 and self.host.startswith(UNIX):
            raise UsageError("several workers cannot share a Unix socket: use --workers 1, or a TCP port")
        if self.worker_count > 1 and sys.platform != "linux":
            raise UsageError("several workers need Linux, which distributes connections: use --workers 1")

    def _check_security(self) -> None:
        """Refuse an option without the one that it needs."""
        if bool(self.tls_cert) != bool(self.tls_key) or (self.tls_client_ca and not self.tls_cert):
            raise UsageError("TLS needs both --tls-cert and --tls-key; --tls-client-ca is used in addition to them")
        if self.enable_control != bool(self.control_tokens):
            raise UsageError("loading and unloading by clients needs both --enable-control and --control-tokens FILE")


@dataclass(frozen=True)
class LogConfig:
    """The log of the command ``evalmode serve``. A server that Python code starts uses the logging of its process.

    Raises:
        UsageError: A value is not one of the choices.
    """

    log_format: str = option("text", "format of the log on standard error", choices=("text", "json"))
    log_level: str = option("info", "lowest level that is logged", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        convert_fields(self)


def _fit_requests(limits: Limits, workers: int) -> Limits:
    """Lower the default limit on requests to what fits into memory."""
    chosen = choose_request_bytes(limits.max_request_bytes, workers)
    if chosen.limit_bytes < limits.max_request_bytes:
        log.info("requests are limited to %s bytes: %s; set --max-request-bytes to change this", *chosen)
    return replace(limits, max_request_bytes=chosen.limit_bytes)


def _read_pin(text: str) -> tuple[str, int]:
    """Parse NAME@VERSION.

    Raises:
        UsageError: The text has another form.
    """
    name, _, version = text.rpartition("@")
    if not name or not version.isdecimal():
        raise UsageError(f"--model {text!r}: use NAME@VERSION, such as cats@3")
    return name, int(version)
