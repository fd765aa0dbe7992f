"""No other server can take the port of several workers, even before one of them listens."""

from __future__ import annotations

import socket

import pytest

from evalmode.errors import AddressUnavailable
from serving.transports.addresses import check_address
from serving.workers.port import hold_port

HOST = "127.0.0.1"


def test_other_servers_find_the_port_in_use_before_a_worker_listens() -> None:
    with hold_port(HOST, 0) as port:
        with pytest.raises(AddressUnavailable, match="the port is in use"):
            check_address(HOST, port)
        with socket.socket() as client:
            assert client.connect_ex((HOST, port)) != 0
    check_address(HOST, port)


def test_workers_listen_on_the_port_at_the_same_time() -> None:
    with hold_port(HOST, 0) as port, socket.socket() as first, socket.socket() as second:
        for worker in (first, second):
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind((HOST, port))
            worker.listen()
        with socket.create_connection((HOST, port)):
            pass


def test_a_host_with_several_addresses_has_one_port() -> None:
    with hold_port("localhost", 0) as port:
        assert port > 0
        with pytest.raises(AddressUnavailable, match="the port is in use"):
            check_address(HOST, port)


def test_a_port_in_use_is_an_error() -> None:
    with (
        socket.create_server((HOST, 0)) as other,
        pytest.raises(AddressUnavailable, match="the port is in use"),
        hold_port(HOST, other.getsockname()[1]),
    ):
        pass
