"""Bounds on connections, by what Linux counts of real sockets."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import patch

import pytest

from serving.transports.connections import CALL_BYTES, LOOSE_BYTES, Connections, _name
from tests.serving.conftest import WAIT_S, spawn, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tcp_info is Linux's")

LIMIT, MAX_BYTES = 10, 200_000
CLOSE_WAIT = 8  # of the kernel's states of a connection: the client has left


def no_calls() -> tuple[dict[str, int], set[str]]:
    """Of a server that sees no call."""
    return {}, set()


class Peer:
    """Both ends of an accepted connection."""

    def __init__(self, listening: socket.socket) -> None:
        self.client = socket.create_connection(listening.getsockname())
        self.client.settimeout(WAIT_S)
        self.server, _ = listening.accept()
        host, port = self.client.getsockname()
        self.name = f"ipv4:{host}:{port}"

    def send(self, count: int) -> None:
        """Send bytes; they have arrived when this returns."""
        sent = spawn(self.client.sendall, bytes(count))
        while count:
            count -= len(self.server.recv(count))
        sent.result(WAIT_S)

    def is_open(self) -> bool:
        self.client.setblocking(False)
        try:
            return bool(self.client.recv(1))
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        finally:
            self.client.settimeout(WAIT_S)

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Port:
    """A listening socket, and the peers that came."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.socket = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.number = self.socket.getsockname()[1]

    def connect(self, count: int) -> list[Peer]:
        peers = [Peer(self.socket) for _ in range(count)]
        for peer in peers:
            self._stack.callback(peer.close)
        return peers


@pytest.fixture
def port() -> Iterator[Port]:
    with ExitStack() as stack:
        yield Port(stack)


def make(port: Port, limit: int = LIMIT, **options: object) -> Connections:
    made = Connections(port.number, limit, MAX_BYTES, **options)
    made.sweep()
    return made


def open_of(peers: list[Peer]) -> list[bool]:
    return [peer.is_open() for peer in peers]


class TestUnfinishedBytes:
    def test_beyond_the_limit_close_the_connection_with_the_most(self, port: Port) -> None:
        peers = port.connect(3)
        connections = make(port)
        for peer, size in zip(peers, (40_000, 90_000, 60_000), strict=True):
            peer.send(size)
        connections.sweep()
        assert open_of(peers) == [True] * 3
        peers[0].send(30_000)
        connections.sweep()
        assert open_of(peers) == [True, False, True]

    def test_are_not_those_of_whole_messages(self, port: Port) -> None:
        whole, unfinished = port.connect(2)
        connections = make(port)
        for _ in range(5):
            whole.send(150_000)
            connections.count_message(whole.name, 150_000 - 1000)
            unfinished.send(20_000)
            connections.sweep()
        assert open_of([whole, unfinished]) == [True, True]
        unfinished.send(101_000)
        connections.sweep()
        assert open_of([whole, unfinished]) == [True, False]

    def test_are_not_those_of_refused_calls(self, port: Port) -> None:
        [refused] = port.connect(1)
        connections = make(port)
        for _ in range(5):
            refused.send(3 * 65_536)
            for _ in range(3):
                connections.count_refusal(refused.name)
            connections.sweep()
        assert open_of([refused]) == [True]

    def test_are_shared_where_the_transport_does_not_know_whose_messages_came(self, port: Port) -> None:
        peers = port.connect(2)
        connections = make(port)
        for _ in range(5):
            for peer in peers:
                peer.send(90_000)
                connections.count_message("unknown", 90_000)
            connections.sweep()
        assert open_of(peers) == [True] * 2


class TestLooseBytes:
    """Those that belong to no call: where a transport knows its calls."""

    def sweep_twice(self, connections: Connections) -> None:
        with patch("serving.transports.connections.LOOSE_S", -1.0):
            for _ in range(2):
                connections.sweep()

    def test_close_their_connection_and_no_other(self, port: Port) -> None:
        loose, fine = port.connect(2)
        connections = make(port, find_calls=no_calls)
        loose.send(LOOSE_BYTES + CALL_BYTES + 1)
        fine.send(LOOSE_BYTES)
        self.sweep_twice(connections)
        assert open_of([loose, fine]) == [False, True]

    def test_are_not_those_of_a_message_that_grpc_throws_away(self, port: Port) -> None:
        """One over the limit: its call has ended, and its bytes still come."""
        [peer] = port.connect(1)
        connections = make(port, find_calls=no_calls)
        connections.excuse(peer.name)
        peer.send(LOOSE_BYTES + CALL_BYTES + 1)
        self.sweep_twice(connections)
        assert open_of([peer]) == [True]

    def test_are_not_those_of_a_call_that_waits_for_its_message(self, port: Port) -> None:
        [waiting] = port.connect(1)
        connections = make(port, find_calls=lambda: ({waiting.name: 2**30}, {waiting.name}))
        waiting.send(LOOSE_BYTES + CALL_BYTES + 1)
        self.sweep_twice(connections)
        assert open_of([waiting]) == [True]

    def test_are_not_those_of_calls_that_came_and_went(self, port: Port) -> None:
        [fine] = port.connect(1)
        connections = make(port, find_calls=no_calls)
        for _ in range(4):
            fine.send(50_000)
            connections.count_message(fine.name, 50_000)
            self.sweep_twice(connections)
        assert open_of([fine]) == [True]

    def test_are_not_known_while_calls_have_come_that_nobody_has_looked_at(self, port: Port) -> None:
        [behind] = port.connect(1)
        connections = make(port, find_calls=no_calls, is_behind=lambda: True)
        behind.send(LOOSE_BYTES + CALL_BYTES + 1)
        self.sweep_twice(connections)
        assert open_of([behind]) == [True]

    def test_are_given_a_moment(self, port: Port) -> None:
        [new] = port.connect(1)
        connections = make(port, find_calls=no_calls)
        new.send(LOOSE_BYTES + CALL_BYTES + 1)
        with patch("serving.transports.connections.LOOSE_S", 3600.0):
            connections.sweep()
        assert open_of([new]) == [True]


class TestTooMany:
    def test_close_those_that_have_been_silent_for_longest(self, port: Port) -> None:
        peers = port.connect(5)
        connections = make(port)
        peers[1].send(1)
        peers[3].send(1)
        wait_until(lambda: silent_ms(peers[1]) > 100)
        for number in (0, 2, 4):
            peers[number].send(1)
        connections._limit = 3
        connections.sweep()
        assert open_of(peers) == [True, False, True, False, True]

    def test_are_not_those_that_their_clients_have_left(self, port: Port) -> None:
        peers = port.connect(4)
        for peer in peers[:2]:
            peer.client.shutdown(socket.SHUT_WR)
        wait_until(lambda: all(tcp_info(peer)[0] == CLOSE_WAIT for peer in peers[:2]))
        make(port, limit=2)
        assert open_of(peers[2:]) == [True] * 2

    def test_are_of_this_port_alone(self, port: Port) -> None:
        with ExitStack() as stack:
            others = Port(stack).connect(3)
            mine = port.connect(1)
            make(port, limit=1)
            assert open_of(others + mine) == [True] * 4


def tcp_info(peer: Peer) -> bytes:
    return peer.server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)


def silent_ms(peer: Peer) -> int:
    return int.from_bytes(tcp_info(peer)[52:56], sys.byteorder)


class TestTheEnd:
    def test_what_was_sent_arrives_and_clients_see_the_end(self, port: Port) -> None:
        [peer] = port.connect(1)
        peer.server.sendall(b"the last answer")
        ended = spawn(make(port).finish, 3600)
        assert peer.client.makefile("rb").read() == b"the last answer"
        assert not ended.done()
        peer.client.close()
        ended.result(WAIT_S)  # as soon as the last client has left

    def test_new_connections_are_refused(self, port: Port) -> None:
        make(port).finish(0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port.number), WAIT_S)

    def test_who_still_accepts_sees_no_error(self, port: Port) -> None:
        """grpc's core would write a line of its own into the log."""
        make(port).finish(0)
        with pytest.raises(BlockingIOError):
            port.socket.accept()

    def test_it_does_not_wait_longer_than_it_may_for_clients_that_stay(self, port: Port) -> None:
        [peer] = port.connect(1)
        spawn(make(port).finish, 0.01).result(WAIT_S)
        assert peer.client.recv(1) == b""


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (("10.0.0.7", 51200), "ipv4:10.0.0.7:51200"),
        (("::1", 51200, 0, 0), "ipv6:%5B::1%5D:51200"),
        (("::ffff:10.0.0.7", 51200, 0, 0), "ipv4:10.0.0.7:51200"),
    ],
)
def test_a_connection_is_called_as_grpc_calls_it(peer: tuple, name: str) -> None:
    class Connected:
        def getpeername(self) -> tuple:
            return peer

    assert _name(Connected()) == name


def test_it_looks_again_and_again(port: Port) -> None:
    [peer] = port.connect(1)
    connections = Connections(port.number, LIMIT, MAX_BYTES)
    connections.start()
    try:
        peer.send(MAX_BYTES + 1)
        wait_until(lambda: not peer.is_open())
    finally:
        connections.finish(0)
