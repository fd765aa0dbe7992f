"""Channels: options, retries, TLS and authorization."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import grpc

DEFAULT_ADDRESS = "127.0.0.1:8001"
RETRY = {  # only of UNAVAILABLE: another server may answer, and predictions have no side effects
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # each client has a connection of its own
    ("grpc.max_receive_message_length", -1),  # the server's limits apply
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),  # detects a server whose host is down
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRY}]})),
)
FilePath = str | PathLike[str]


def open_channel(
    library: Any, address: str, tls_ca: FilePath | None, tls_cert: FilePath | None, tls_key: FilePath | None
) -> Any:
    """Open a channel, with TLS if a file is given.

    Args:
        library: ``grpc`` or ``grpc.aio``.
        address: HOST:PORT.
        tls_ca: PEM file of the certificate authorities to trust; by default the system's.
        tls_cert: PEM file of the client's certificate, if the server requires one.
        tls_key: PEM file of its private key.

    Returns:
        A ``grpc.Channel`` or ``grpc.aio.Channel``.

    Raises:
        OSError: A file cannot be read.
    """
    if not (tls_ca or tls_cert or tls_key):
        return library.insecure_channel(address, options=OPTIONS)
    files = (Path(file).read_bytes() if file else None for file in (tls_ca, tls_key, tls_cert))
    return library.secure_channel(address, grpc.ssl_channel_credentials(*files), options=OPTIONS)


def authorize(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a bearer token; empty without one."""
    return (("authorization", f"Bearer {token}"),) if token else ()
