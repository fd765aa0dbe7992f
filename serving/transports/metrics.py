"""Metrics and health over HTTP: /metrics for Prometheus; /readyz, /healthz and /livez for probes without gRPC."""

from __future__ import annotations

import logging
import socketserver
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from evalmode.errors import ThreadsUnavailable
from serving.threads import start_threads
from serving.transports.addresses import METRICS_PORT, bind_first
from serving.transports.liveness import Liveness

log = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
REQUEST_S = 10  # seconds that a client may take to send its request

Response: TypeAlias = tuple[HTTPStatus, str, bytes]  # status, content type, body


@dataclass(frozen=True)
class Probes:
    """The state of a server, for probes.

    Attributes:
        is_whole: Returns whether all of the server is ready for requests, for /healthz: with workers, every one.
        find_obstacle: Returns why the server answers no requests, such as ``draining``, for /readyz; "" if it does.
        liveness: Measures whether the server answers its own health checks, for /livez and /readyz.
    """

    is_whole: Callable[[], bool]
    find_obstacle: Callable[[], str]
    liveness: Liveness

    def is_ready(self) -> bool:
        """Whether the server answers requests, as /readyz reports."""
        return not self.answer("/readyz")

    def answer(self, path: str) -> str | None:
        """Return why a probe fails, in one line; "" if it succeeds, None if there is no such probe.

        Args:
            path: The path of the request, such as ``/readyz``.
        """
        match path:
            case "/readyz":
                return self.find_obstacle() or self._find_silence()
            case "/healthz":
                return "" if self.is_whole() else "not ready"
            case "/livez":
                return self._find_silence()
        return None

    def _find_silence(self) -> str:
        """Return for how long the server has been silent; "" if it answers."""
        if self.liveness.is_alive():
            return ""
        return f"no health check has been answered for {self.liveness.silent_s():.0f} s"


class MetricsServer:
    """An HTTP server in its own threads. It serves requests as soon as it is constructed.

    Args:
        collectors: The metrics for /metrics.
        probes: The state of the server, for all other paths.
        host: The host to listen on.
        port: The port; 0 chooses a free one.

    Attributes:
        port: The port that the server listens on.

    Raises:
        AddressUnavailable: The host is unknown, or the address cannot be bound.
        ThreadsUnavailable: The system cannot start the thread.
    """

    def __init__(
        self,
        collectors: Iterable[Collector],
        probes: Probes,
        host: str,
        port: int,
    ) -> None:
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(collector)
        self._probes = probes
        self._server = bind_first(host, port, METRICS_PORT, partial(_make_server, answer=self._answer))
        self.port = self._server.server_address[1]
        try:
            self._threads = start_threads(1, "metrics", self._server.serve_forever)
        except ThreadsUnavailable:
            self._server.server_close()
            raise

    def close(self) -> None:
        """Stop listening, and wait for the thread that accepts connections."""
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()

    def _answer(self, path: str, accept: str) -> Response:
        """Return the response to a request with a path and an ``Accept`` header."""
        path = path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(accept)
            return HTTPStatus.OK, kind, encode(self._registry)
        problem = self._probes.answer(path)
        if problem is None:
            return HTTPStatus.NOT_FOUND, TEXT, b"not found: use /metrics, /readyz, /healthz or /livez\n"
        if problem:
            return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{problem}\n".encode()
        return HTTPStatus.OK, TEXT, b"ok\n"


def _make_server(family: int, address: Any, answer: Callable[[str, str], Response]) -> ThreadingHTTPServer:
    """Make an HTTP server that listens on an address and answers with ``answer``."""

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_S

        def do_GET(self) -> None:
            self.wfile.write(self._send_head())

        def do_HEAD(self) -> None:
            self._send_head()

        def _send_head(self) -> bytes:
            """Send the status and the headers, and return the body."""
            status, kind, body = answer(self.path, self.headers.get("Accept", ""))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: a scrape every few seconds would fill the log."""

    class Server(ThreadingHTTPServer):
        address_family = family

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(self)  # HTTPServer would look up the host name, which may take seconds

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Log an error, unless the client has disconnected."""
            if not isinstance(sys.exception(), OSError):
                log.exception("a request for metrics or health failed")

    return Server(address, Handler)
