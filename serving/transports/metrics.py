"""Metrics and health over HTTP: /metrics for Prometheus; /healthz and /livez for probes that do not speak gRPC."""

from __future__ import annotations

import logging
import socketserver
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from serving.services.metrics import Metrics
from serving.transports.addresses import METRICS_PORT, explain, resolve
from serving.transports.liveness import Liveness

log = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"


class MetricsServer:
    """An HTTP server in threads of its own.

    Args:
        metrics: what /metrics tells, beside what the process uses.
        is_ready: Whether the server wants requests: /healthz.
        liveness: Whether it answers: /livez.
        host: interface to listen on.
        port: port, or 0 for a free one.

    Attributes:
        port: the port listened on.

    Raises:
        AddressUnavailable: the address is not known, or cannot be bound.
    """

    def __init__(
        self, metrics: Metrics, is_ready: Callable[[], bool], liveness: Liveness, host: str, port: int
    ) -> None:
        registry = CollectorRegistry()
        registry.register(metrics)
        ProcessCollector(registry=registry)

        class Handler(_Handler):
            def answer(self) -> tuple[HTTPStatus, str, bytes]:
                match self.path.partition("?")[0]:
                    case "/metrics":
                        encode, kind = choose_encoder(self.headers.get("Accept", ""))
                        return HTTPStatus.OK, kind, encode(registry)
                    case "/healthz" if is_ready():
                        return HTTPStatus.OK, TEXT, b"ok\n"
                    case "/healthz":
                        return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, b"not ready\n"
                    case "/livez" if liveness.is_alive():
                        return HTTPStatus.OK, TEXT, b"ok\n"
                    case "/livez":
                        silent = f"no health check was answered for {liveness.silent_s():.0f} s\n"
                        return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, silent.encode()
                return HTTPStatus.NOT_FOUND, TEXT, b"here are /metrics, /healthz and /livez\n"

        (family, address), *_ = resolve(host, port)
        try:
            self._server = _make_server(family, address, Handler)
        except OSError as error:
            raise explain(error, host, port, METRICS_PORT) from error
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the server, and close its port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds that a client may take to ask

    def answer(self) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.wfile.write(self._answer_head())

    def do_HEAD(self) -> None:
        self._answer_head()

    def _answer_head(self) -> bytes:
        """Send the head of an answer, and return its body."""
        status, kind, body = self.answer()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body

    def log_message(self, format: str, *args: Any) -> None:
        """No line a request."""


def _make_server(family: int, address: Any, handler: type[_Handler]) -> ThreadingHTTPServer:
    class Server(ThreadingHTTPServer):
        address_family = family

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(self)  # HTTPServer's looks the host's name up, which may take seconds

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Log what went wrong; not that a client went away."""
            if not isinstance(sys.exception(), OSError):
                log.exception("a request for metrics or health failed")

    return Server(address, handler)
