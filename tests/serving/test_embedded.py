"""Servers that are started from Python, over real channels, on both transports."""

from __future__ import annotations

import asyncio
import http.client
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import trustme

from evalmode import AsyncClient, CallFailed, Client, start_server
from evalmode.errors import AddressUnavailable, ArtifactInvalid, UsageError
from evalmode.runtime.lone import Lone
from serving.config import ServeConfig
from serving.server import Server
from serving.trials import Trials
from tests.conftest import encode, plain
from tests.serving.conftest import WAIT_S, spawn, wait_until

RED = encode(plain("red"))
SERVER_THREADS = (
    *("slot-", "large-", "control-", "event-loop-", "loader", "repository-", "liveness-"),
    *("metrics", "tokens", "certificates"),
)


@pytest.fixture(params=["grpcio", "native"])
def transport(request: pytest.FixtureRequest) -> str:
    if request.param == "native":
        pytest.importorskip("pygrpc_native", reason="evalmode[native] is not installed")
    return str(request.param)


def list_server_threads() -> set[threading.Thread]:
    """The threads of servers, by their names."""
    return {one for one in threading.enumerate() if one.name.startswith(SERVER_THREADS)}


def ask(server: Any) -> str:
    with Client(server.address) as client:
        return str(client.predict(RED).label)


@pytest.mark.parametrize("one_thread", [False, True])
def test_networks_use_all_cpus_for_a_request_that_is_alone(
    colours: Path, transport: str, one_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalmode.runtime.threads.MIN_RUN_S", 0.0)
    monkeypatch.setattr("serving.server.count_cpus", lambda: 2)
    with start_server(colours, transport=transport, one_thread=one_thread) as server:
        with patch.object(Lone, "run", autospec=True, side_effect=Lone.run) as run:
            assert ask(server) == "red"
        assert run.call_count == (0 if one_thread else 1)


def test_a_server_answers_until_the_block_ends(colours: Path, transport: str) -> None:
    with start_server(colours, transport=transport) as server:
        assert ask(server) == "red"
        assert repr(server) == f"Server({server.address!r})"
        for path in ("readyz", "healthz", "livez", "metrics"):
            with urllib.request.urlopen(f"http://{server.metrics_address}/{path}", timeout=WAIT_S) as response:
                assert response.status == 200
        address = server.address
    with pytest.raises(CallFailed), Client(address, timeout_s=1) as client:
        client.predict(RED)


def test_a_server_is_ready_once_it_has_started_and_while_it_has_a_model(colours: Path, transport: str) -> None:
    options = {"repository": colours, "transport": transport, "port": 0, "metrics_port": 0, "lame_duck": 0}
    config = ServeConfig.from_options(options)
    with Server(config, Trials(config.limits), threading.Event()) as server:
        server.load()
        server.listen()
        assert read_readiness(server) == (503, "starting\n")
        server.start()
        assert read_readiness(server) == (200, "ok\n")
        server._models.unload("colours")
        assert read_readiness(server) == (503, "no model is loaded\n")


def read_readiness(server: Server) -> tuple[int, str]:
    """The status and the body of /readyz."""
    connection = http.client.HTTPConnection(server.metrics_address, timeout=WAIT_S)
    with closing(connection):
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


def test_all_threads_end_with_the_server_and_another_can_be_started(colours: Path, transport: str) -> None:
    before = list_server_threads()
    for _ in range(2):
        with start_server(colours, transport=transport) as server:
            assert list_server_threads() > before
            assert ask(server) == "red"
        wait_until(lambda: list_server_threads() == before)


def test_two_servers_run_in_one_process(colours: Path, transport: str) -> None:
    with start_server(colours, transport=transport) as one, start_server(colours, transport=transport) as other:
        assert one.address != other.address
        assert [ask(one), ask(other)] == ["red", "red"]
        one.stop()
        assert ask(other) == "red"


def test_signal_handlers_and_logging_stay_unchanged(colours: Path, transport: str) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    signals, handlers = [signal.getsignal(one) for one in numbers], [*logging.getLogger().handlers]
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook)
    with start_server(colours, transport=transport):
        assert [signal.getsignal(one) for one in numbers] == signals
        assert logging.getLogger().handlers == handlers
        assert (sys.excepthook, threading.excepthook, sys.unraisablehook) == hooks


def test_a_server_starts_and_stops_inside_a_running_event_loop(colours: Path, transport: str) -> None:
    async def use() -> str:  # as in a notebook
        with start_server(colours, transport=transport) as server:
            async with AsyncClient(server.address) as client:
                return str((await client.predict(RED)).label)

    assert asyncio.run(use()) == "red"


def test_a_second_stop_does_nothing_and_reports_no_cut_request(colours: Path, transport: str) -> None:
    server = start_server(colours, transport=transport, no_metrics=True)
    waiting = spawn(server.wait)
    assert (server.stop(), server.stop()) == (0, 0)
    assert waiting.result(WAIT_S) is None
    with pytest.raises(UsageError, match="no_metrics"):
        _ = server.metrics_address


def test_several_workers_are_left_to_the_command(colours: Path) -> None:
    with pytest.raises(UsageError, match="a Python process is one worker; use the command 'evalmode serve'"):
        start_server(colours, workers="2")


def test_options_are_those_of_the_command(colours: Path, tmp_path: Path, transport: str) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    with start_server(colours, transport=transport, tokens=tmp_path / "tokens") as server:
        with pytest.raises(CallFailed, match="no valid token"):
            ask(server)
        with Client(server.address, token="0123456789abcdef") as client:
            assert client.predict(RED).label == "red"


def test_tls_is_used_and_its_thread_ends_with_the_server(colours: Path, tmp_path: Path) -> None:
    authority, before = trustme.CA(), list_server_threads()
    certificate, key, ca = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    with start_server(colours, tls_cert=certificate, tls_key=key) as server:
        with Client(server.address, tls_ca=ca) as client:
            assert client.predict(RED).label == "red"
        assert {one.name.rpartition("-")[0] for one in list_server_threads()} >= {"certificates"}
    wait_until(lambda: list_server_threads() == before)


def test_a_server_that_cannot_start_leaves_no_thread_running(colours: Path, tmp_path: Path, transport: str) -> None:
    before = list_server_threads()
    with pytest.raises(ArtifactInvalid, match="publish a model"):
        start_server(tmp_path, transport=transport)
    with pytest.raises(ArtifactInvalid, match="versions of colours: 1"):
        start_server(colours, transport=transport, model="colours@9")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for options in ({"port": port}, {"metrics_port": port}):
            with pytest.raises(AddressUnavailable):
                start_server(colours, transport=transport, **options)
    wait_until(lambda: list_server_threads() == before)


def test_the_transport_ends_if_the_metrics_cannot_listen(
    colours: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list_server_threads()
    # The port is taken after the check.
    monkeypatch.setattr("serving.config.ServeConfig.check_addresses", lambda self: None)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(AddressUnavailable):
        start_server(colours, transport=transport, metrics_port=other.getsockname()[1])
    wait_until(lambda: list_server_threads() == before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_blocks_until_a_signal_and_drains(colours: Path, transport: str, number: signal.Signals) -> None:
    code = (
        "import logging, signal, sys\n"
        "import evalmode\n"
        "logging.basicConfig(level='INFO', stream=sys.stdout)\n"
        f"evalmode.serve({str(colours)!r}, port=0, no_metrics=True, lame_duck=0, transport={transport!r})\n"
        "print('ended', signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            printed = next(line for line in lines if line.startswith("serving "))
            assert re.fullmatch(r"serving colours on port [1-9]\d*\n", printed)
            assert next(lines) == "no metrics\n"
            process.send_signal(number)
            rest = list(lines)
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
    assert rest[-1] == "ended True\n"
    assert "INFO:serving:all requests answered: 0\n" in rest
