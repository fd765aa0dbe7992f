"""/livez, and its part in /readyz: whether the server answers health checks on its own port."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest

from evalmode.runtime.model import ImageClassifier
from serving.transports.health import Health, Response
from serving.transports.liveness import Liveness
from serving.transports.metrics import MetricsServer, Probes
from serving.transports.own_health import OwnHealth
from tests.serving.conftest import WAIT_S, classify_by, listen, wait_until


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with patch("serving.transports.liveness.CHECK_S", 0.05), patch("serving.transports.liveness.LATE_S", 1.0):
        yield


class NoMetrics:
    """An empty set of metrics."""

    def collect(self) -> tuple[()]:
        return ()


@pytest.fixture
def ask() -> Callable[..., tuple[int, str]]:
    """Request /livez or another path; return the status and the body."""

    def get(liveness: Liveness, ready: bool, path: str = "/livez") -> tuple[int, str]:
        metrics: Any = NoMetrics()
        probes = Probes(lambda: ready, lambda: "" if ready else "draining", liveness)
        server = MetricsServer((metrics,), probes, "127.0.0.1", 0)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=WAIT_S) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        finally:
            server.close()

    return get


def begin(address: str) -> Liveness:
    liveness = Liveness(OwnHealth(address).check)
    liveness.start()
    return liveness


def test_a_server_that_accepts_connections_without_answering_is_not_alive(ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        liveness = begin(f"127.0.0.1:{silent.getsockname()[1]}")
        wait_until(lambda: not liveness.is_alive())
        for path in ("/livez", "/readyz"):
            status, text = ask(liveness, True, path)
            assert status == 503
            assert text.startswith("no health check has been answered for ")
        assert ask(liveness, False, "/readyz") == (503, "draining\n")


def test_a_server_is_not_alive_while_its_event_loop_hangs(model: ImageClassifier, ask) -> None:
    go_on = threading.Event()
    check = Health.check

    def hang(health: Health, name: str) -> Response:
        assert go_on.wait(2 * WAIT_S)
        return check(health, name)

    server = listen(classify_by(model))
    try:
        liveness = begin(server.local_address)
        first = liveness._answered
        wait_until(lambda: liveness._answered > first)
        assert ask(liveness, True) == (200, "ok\n")
        with patch.object(Health, "check", hang):
            wait_until(lambda: not liveness.is_alive())
            assert ask(liveness, True)[0] == 503
            go_on.set()
        wait_until(liveness.is_alive)
    finally:
        go_on.set()
        server.drain(0)


def test_a_server_that_is_not_ready_or_drains_is_alive(model: ImageClassifier, ask) -> None:
    server = listen(classify_by(model))
    try:
        server.announce_shutdown()
        liveness = begin(server.local_address)
        first = liveness._answered
        wait_until(lambda: liveness._answered > first)  # with NOT_SERVING
        assert ask(liveness, False) == (200, "ok\n")
        assert ask(liveness, False, "/readyz") == (503, "draining\n")
        assert ask(liveness, True, "/readyz") == (200, "ok\n")
    finally:
        server.drain(0)
