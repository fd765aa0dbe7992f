"""The options of a server. One field gives an option, its environment variable, its range, its help and its docs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from evalmode.errors import UsageError
from evalmode.limits import Limits
from serving.engine.memory import choose_request_bytes
from serving.transports.addresses import METRICS_PORT, UNIX, check_address, is_loopback

log = logging.getLogger("serving")

VARIABLE_PREFIX = "EVALMODE_SERVE_"
MAX_PORT = 65535

Value = TypeVar("Value")


def _option(default: Value, what: str, **rules: Any) -> Value:
    """Declare an option.

    Args:
        default: Its default.
        what: Its help.
        rules: ``minimum`` and ``maximum`` of a number, ``choices`` of a string, or ``metavar``.
    """
    return field(default=default, metadata={"what": what, **rules})


@dataclass(frozen=True)
class Option:
    """An option of ``evalmode serve``.

    Attributes:
        name: The name of the field, which is the keyword of the Python API.
        kind: The type of the value: bool, int, float, str, Path, or tuple for an option that can be repeated.
        default: The default; ``MISSING`` if the option is required.
        rules: The metadata of the field.
    """

    name: str
    kind: type
    default: Any
    rules: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return VARIABLE_PREFIX + self.name.upper()

    @property
    def is_required(self) -> bool:
        """Whether the option has no default."""
        return self.default is MISSING

    @property
    def help(self) -> str:
        """The help, with what happens beyond a limit."""
        beyond = self.rules.get("beyond")
        return f"{self.rules['what']}; beyond it: {beyond}" if beyond else str(self.rules["what"])

    def convert(self, value: Any) -> Any:
        """Convert a value from Python to the type of the option, and check it.

        Args:
            value: The value. A path may be a string, a repeatable option a list or a single string.

        Returns:
            The value as a field of the configuration holds it.

        Raises:
            UsageError: The value has another type, is outside the range, or is not one of the choices.
        """
        if value is None and self.default is None:
            return None
        if self.kind is Path and isinstance(value, str | PathLike):
            value = Path(value)
        if self.kind is tuple:
            value = (value,) if isinstance(value, str) else tuple(value)
        if self.kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            raise UsageError(f"{self.flag} {value!r} is not of type {self.kind.__name__}")
        choices, low, high = (self.rules.get(rule) for rule in ("choices", "minimum", "maximum"))
        if choices and value not in choices:
            raise UsageError(f"{self.flag} {value!r} is not one of {', '.join(choices)}")
        if (low is not None and not low <= value) or (high is not None and not value <= high):
            raise UsageError(f"{self.flag} {value} is outside {low}..{'' if high is None else high}")
        return value


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The configuration of a server: validated once, then passed whole.

    Each field except ``limits`` is an option of ``evalmode serve``. The fields of ``limits`` are options, too.

    Raises:
        UsageError: A value is outside its range, or options do not fit together.
    """

    repository: Path = field(metadata={"what": "model repository: a folder with NAME/VERSION/model.onnx"})
    host: str = _option("127.0.0.1", "interface to listen on: an address, a host name, or unix:PATH")
    port: int = _option(8001, "port to listen on; 0: a free port", minimum=0, maximum=MAX_PORT)
    transport: str = _option(
        "grpcio",
        "gRPC implementation; native is faster and less mature, and does not support TLS",
        choices=("grpcio", "native"),
    )
    allow_unbounded_messages: bool = _option(
        False,
        "allow native to listen on other interfaces than loopback, although it buffers whole messages and decompresses "
        "them without a limit",
    )
    provider: str = _option("cpu", "execution provider; auto: cuda if it is available", choices=("cpu", "cuda", "auto"))
    allow_uncertified: bool = _option(False, "serve files without a certificate, one input at a time")
    allow_nonfinite: bool = _option(False, "accept NaN and infinity in floating-point inputs")
    tls_cert: Path | None = field(
        default=None, metadata={"what": "PEM file: the server certificate, then the intermediate certificates"}
    )
    tls_key: Path | None = field(default=None, metadata={"what": "PEM file: the private key of --tls-cert"})
    tls_client_ca: Path | None = field(
        default=None, metadata={"what": "PEM file: require client certificates issued by one of these authorities"}
    )
    tokens: Path | None = field(
        default=None,
        metadata={"what": "file of bearer tokens, one per line with an optional expiry; each call must send one"},
    )
    enable_control: bool = _option(False, "allow clients to load and unload models; needs --control-tokens")
    control_tokens: Path | None = field(
        default=None,
        metadata={"what": "file of bearer tokens that allow loading and unloading models, and predictions"},
    )
    no_reflection: bool = _option(False, "disable server reflection")
    model: tuple[str, ...] = _option(
        (), "serve this version of a model instead of the newest; repeatable", metavar="NAME@VERSION"
    )
    follow_links: bool = _option(False, "follow symbolic links that lead out of the repository")
    poll: float = _option(1.0, "interval between two scans of the repository, seconds", minimum=0.05)
    keep: int = _option(2, "versions of a model that stay loaded, for rollback", minimum=1)
    metrics_port: int = _option(
        8002, "port of /metrics, /healthz and /livez; 0: a free port", minimum=0, maximum=MAX_PORT
    )
    label_metrics: int = _option(
        1000,
        "labels per model with a counter of their own in the metrics, in the order of their first prediction",
        minimum=0,
    )
    no_metrics: bool = _option(False, "disable /metrics, /healthz and /livez")
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _convert_fields(self)
        self._check_transport()
        self._check_security()
        if not self.no_metrics and self.port and self.port == self.metrics_port and not self.host.startswith(UNIX):
            raise UsageError(f"--port and --metrics-port are both {self.port}: choose two different ports")
        _ = self.pinned

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
        known = {option.name: option for option in list_options(cls)}
        for name in options:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                meant = f": did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"a server has no option {name!r}{meant}")
        if "repository" not in options:
            raise UsageError("a server needs the option 'repository'")
        bounds = {limit.name for limit in fields(Limits)}
        limits = Limits(**{name: known[name].convert(value) for name, value in options.items() if name in bounds})
        if "max_request_bytes" not in options:
            limits = _fit_requests(limits)
        return cls(**{name: value for name, value in options.items() if name not in bounds}, limits=limits)

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
        return "127.0.0.1" if self.host.startswith(UNIX) else self.host

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

    log_format: str = _option("text", "format of the log on standard error", choices=("text", "json"))
    log_level: str = _option("info", "lowest level that is logged", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        _convert_fields(self)


def list_options(*configs: type) -> list[Option]:
    """List the options that configurations declare.

    Args:
        configs: Dataclasses such as ``ServeConfig``. Limits follow the options that are not limits.
    """
    options: list[Option] = []
    limits: list[Option] = []
    for config in configs:
        kinds = get_type_hints(config)
        for one in fields(config):
            if one.type == Limits.__name__:
                limits = list_options(Limits)
                continue
            options.append(Option(one.name, _find_kind(kinds[one.name]), one.default, one.metadata))
    return options + limits


def _convert_fields(config: ServeConfig | LogConfig) -> None:
    """Convert and check the fields of a configuration. ``Limits`` checks itself."""
    for option in list_options(type(config)):
        if hasattr(config, option.name):
            object.__setattr__(config, option.name, option.convert(getattr(config, option.name)))


def _find_kind(annotation: Any) -> type:
    """The class of a field's values, without the None of an optional one."""
    if isinstance(annotation, UnionType):
        annotation = next(one for one in get_args(annotation) if one is not NoneType)
    kind: type = get_origin(annotation) or annotation
    return kind


def _fit_requests(limits: Limits) -> Limits:
    """Lower the default limit on requests to what fits into memory."""
    chosen = choose_request_bytes(limits.max_request_bytes)
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
