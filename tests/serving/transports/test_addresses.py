"""Each form of ``--host`` works, or is rejected with a reason in one line."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from evalmode.client import Client
from evalmode.errors import AddressUnavailable
from serving.transports.addresses import check_address, find_local, is_loopback, join_address
from tests.conftest import encode, plain, serving
from tests.serving.services.test_metrics import get

RED = encode(plain("red"))


def has_ipv6() -> bool:
    with closing(socket.socket(socket.AF_INET6)) as one:
        try:
            one.bind(("::1", 0))
        except OSError:
            return False
        return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def answers(address: str) -> str:
    with Client(address) as client:
        return client.predict(RED).label


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "reached"),
    [("::", ("[::1]", "127.0.0.1")), ("[::]", ("[::1]",)), ("::1", ("[::1]",)), ("[::1]", ("[::1]",))],
)
def test_a_server_listens_on_an_ipv6_address(colours: Path, host: str, reached: tuple[str, ...]) -> None:
    with serving(colours, "--host", host, "--allow-unbounded-messages") as server:
        port = server.address.rpartition(":")[2]
        assert [answers(f"{one}:{port}") for one in reached] == ["red"] * len(reached)
        server.metrics = f"{reached[0]}:{server.metrics.rpartition(':')[2]}"
        assert get(server, "/livez") == (200, "ok\n")
        assert server.stop()[0] == 0


@pytest.mark.parametrize("metrics", ["metrics", "metrics that 0 leaves on", "no metrics"])
@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.2", "0.0.0.0", "localhost"),
        *(pytest.param(host, marks=needs_ipv6) for host in ("::", "::1", "[::1]")),
        pytest.param("unix:", marks=pytest.mark.native_lacks("Unix sockets")),
    ],
)
def test_the_health_check_of_the_image_asks_where_the_server_listens(
    colours: Path, tmp_path: Path, host: str, metrics: str
) -> None:
    host = f"{host}{tmp_path}/socket" if host == "unix:" else host
    flag = {"no metrics": ("--no-metrics",)}.get(metrics, ())
    with serving(colours, "--host", host, "--allow-unbounded-messages", *flag) as server:
        variables = {"EVALMODE_SERVE_HOST": host, "EVALMODE_SERVE_METRICS_PORT": server.metrics.rpartition(":")[2]}
        if not host.startswith("unix:"):
            variables["EVALMODE_SERVE_PORT"] = server.address.rpartition(":")[2]
        if metrics != "metrics":
            variables["EVALMODE_SERVE_NO_METRICS"] = "1" if metrics == "no metrics" else "0"
        if metrics == "no metrics":
            variables["EVALMODE_SERVE_METRICS_PORT"] = "8002"
        asked = check_health(variables)
        assert (asked.returncode, asked.stderr) == (0, "")
    asked = check_health(variables)
    assert asked.returncode == 1
    assert asked.stderr.count("\n") == 1
    assert ("/livez: " if metrics != "no metrics" else ": UNAVAILABLE: ") in asked.stderr


def test_the_health_check_of_the_image_names_an_option_that_is_wrong() -> None:
    asked = check_health({"EVALMODE_SERVE_PORT": "x"})
    assert (asked.returncode, asked.stderr) == (1, "Invalid value for '--port': 'x' is not a valid integer range.\n")


def check_health(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, Path(__file__).parents[3] / "docker" / "healthcheck.py"]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=30)


def test_a_server_listens_on_the_address_of_a_name(colours: Path) -> None:
    with serving(colours, "--host", "localhost") as server:
        assert answers(f"localhost:{server.address.rpartition(':')[2]}") == "red"


@pytest.mark.native_lacks("Unix sockets")
@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_a_unix_socket_of_an_earlier_server_is_reused(colours: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / "socket"
    for _ in range(2):  # the second server finds the socket of the first
        with serving(colours, "--host", form.format(path)) as server:
            assert server.address.endswith(f":unix:{path}")
            assert answers(f"unix:{path}") == "red"
            assert get(server, "/livez") == (200, "ok\n")
            assert "without TLS" not in server.logged()
            server.process.kill()


@pytest.mark.native_lacks("Unix sockets")
def test_a_unix_socket_in_use_is_rejected(colours: Path, tmp_path: Path, evalmode: Callable) -> None:
    path = tmp_path / "socket"
    with serving(colours, "--host", f"unix:{path}"):
        refused = evalmode("serve", "--repository", colours, "--host", f"unix:{path}", "--no-metrics")
        assert (
            refused.stderr
            == f"evalmode: --host unix:{path}: another server listens there: stop it, or use another path\n"
        )
        assert answers(f"unix:{path}") == "red"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("host.invalid", "--host host.invalid is unknown: "),
        ("a..b", "--host a..b is unknown: "),
        ("192.0.2.1", "cannot listen on 192.0.2.1:8001: this machine has no such address: use one of its own"),
        (
            "127.0.0.1:8001",
            "--host '127.0.0.1:8001' is not an address: use an IPv4 or IPv6 address, a name or unix:PATH",
        ),
        ("", "--host '' is not an address"),
        ("vsock:1", "--host 'vsock:1' is not an address"),
        ("unix:", "the path must have 1 to 107 bytes"),
        ("unix:/" + "x" * 107, "the path must have 1 to 107 bytes"),
        ("unix:/no/where/socket", "/no/where is not a folder: create it"),
        (f"unix:{__file__}", "a file that is not a socket exists there"),
    ],
)
def test_an_invalid_host_is_one_line_and_exit_code_2(evalmode: Callable, host: str, expected: str) -> None:
    refused = evalmode("serve", "--repository", "nowhere", "--host", host)
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert line.startswith("evalmode: ")
    assert expected in line


def test_one_port_for_requests_and_metrics_is_rejected(evalmode: Callable) -> None:
    refused = evalmode("serve", "--repository", "nowhere", "--port", 8002)
    assert refused.stderr == "evalmode: --port and --metrics-port are both 8002: choose two different ports\n"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, "permission denied: use a --port from 1024 on, or give the process CAP_NET_BIND_SERVICE"),
        (errno.EAFNOSUPPORT, "this machine has no IPv6: use 0.0.0.0"),
        (errno.EIO, "use another --host"),
    ],
)
def test_errors_of_the_system_are_explained(monkeypatch: pytest.MonkeyPatch, number: int, expected: str) -> None:
    def refuse(one: socket.socket, address: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(AddressUnavailable) as caught:
        check_address("127.0.0.1", 80)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:80: {expected} ({os.strerror(number)})"
    with pytest.raises(AddressUnavailable, match="metrics cannot listen"):
        check_address("127.0.0.1", 80, "--metrics-port")


@pytest.mark.parametrize(
    ("host", "joined", "local", "loopback"),
    [
        ("127.0.0.1", "127.0.0.1:1", "127.0.0.1:2", True),
        ("127.9.9.9", "127.9.9.9:1", "127.9.9.9:2", True),
        ("0.0.0.0", "0.0.0.0:1", "127.0.0.1:2", False),
        ("10.0.0.7", "10.0.0.7:1", "10.0.0.7:2", False),
        ("::", "[::]:1", "127.0.0.1:2", False),
        ("[::1]", "[::1]:1", "[::1]:2", True),
        ("fe80::1%eth0", "[fe80::1%eth0]:1", "[fe80::1%eth0]:2", False),
        ("localhost", "localhost:1", "localhost:2", True),
        ("unix:/a", "unix:/a", "unix:/a", True),
        ("unix:///a", "unix:/a", "unix:/a", True),
    ],
)
def test_addresses_are_converted_to_the_form_of_grpc(host: str, joined: str, local: str, loopback: bool) -> None:
    assert (join_address(host, 1), find_local(joined, 2), is_loopback(host)) == (joined, local, loopback)
