"""Limits on connections, by the statistics of Linux for real sockets."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from evalmode import Client
from serving.engine.shared_limits import Alone, SharedLimit
from serving.transports.connections import Connections
from serving.transports.sockets import name_peer
from serving.transports.unfinished import CALL_BYTES, MAX_STRAY_BYTES, STRAY_BYTES_PER_BYTE_SENT
from tests.conftest import encode, plain, serving
from tests.serving.conftest import WAIT_S, spawn, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="read_tcp_info is Linux's")

RED = encode(plain("red"))
LIMIT, MAX_BYTES = 10, 200_000
TOO_MANY = MAX_STRAY_BYTES + 10 * CALL_BYTES  # stray bytes; each sweep subtracts the bytes of a call
CLOSE_WAIT = 8  # state of the kernel: the client has closed its side


def no_calls() -> tuple[dict[str, int], set[str]]:
    """The calls of a server without calls."""
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
        """Send bytes and wait until the server has received them."""
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
    """A listening socket that creates connected peers."""

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


def limit_alone(limit: int) -> SharedLimit:
    return SharedLimit(limit, Alone(""))


def make(port: Port, limit: int = LIMIT, **options: Any) -> Connections:
    made = Connections(port.number, limit_alone(limit), limit_alone(MAX_BYTES), **options)
    made.sweep()
    return made


def list_open(peers: list[Peer]) -> list[bool]:
    return [peer.is_open() for peer in peers]


class TestUnfinishedBytes:
    def test_over_the_limit_close_the_connection_with_the_most(self, port: Port) -> None:
        peers = port.connect(3)
        connections = make(port)
        for peer, size in zip(peers, (40_000, 90_000, 60_000), strict=True):
            peer.send(size)
        connections.sweep()
        assert list_open(peers) == [True] * 3
        peers[0].send(30_000)
        connections.sweep()
        assert list_open(peers) == [True, False, True]

    def test_exclude_whole_messages(self, port: Port) -> None:
        whole, unfinished = port.connect(2)
        connections = make(port)
        for _ in range(5):
            whole.send(150_000)
            connections.count_message(whole.name, 150_000 - 1000)
            unfinished.send(20_000)
            connections.sweep()
        assert list_open([whole, unfinished]) == [True, True]
        unfinished.send(101_000)
        connections.sweep()
        assert list_open([whole, unfinished]) == [True, False]

    def test_exclude_refused_calls(self, port: Port) -> None:
        [refused] = port.connect(1)
        connections = make(port)
        for _ in range(5):
            refused.send(3 * 65_536)
            for _ in range(3):
                connections.count_refusal(refused.name)
            connections.sweep()
        assert list_open([refused]) == [True]

    def test_are_divided_if_the_connections_of_messages_are_unknown(self, port: Port) -> None:
        peers = port.connect(2)
        connections = make(port)
        for _ in range(5):
            for peer in peers:
                peer.send(90_000)
                connections.count_message("unknown", 90_000)
            connections.sweep()
        assert list_open(peers) == [True] * 2

    @pytest.mark.parametrize(("is_behind", "is_open"), [(False, True), (True, False)])
    def test_are_at_most_the_size_of_the_expected_messages_unless_the_loop_is_behind(
        self, port: Port, is_behind: bool, is_open: bool
    ) -> None:
        """grpc discards longer messages; while the event loop is behind, there may be calls that it has not seen."""
        [peer] = port.connect(1)
        calls = {peer.name: MAX_BYTES}, {peer.name}
        connections = make(port, find_calls=lambda: calls, is_behind=lambda: is_behind)
        peer.send(MAX_BYTES + 1)
        connections.sweep()
        assert list_open([peer]) == [is_open]

    def test_exclude_bytes_in_the_buffer_of_the_kernel(self, port: Port) -> None:
        [peer] = port.connect(1)
        connections = make(port)
        connections._unfinished_bytes = limit_alone(30_000)
        peer.client.sendall(bytes(40_000))
        wait_until(lambda: read_received_bytes(peer) == 40_000)
        connections.sweep()
        assert list_open([peer]) == [True]
        assert len(peer.server.recv(40_000, socket.MSG_WAITALL)) == 40_000
        connections.sweep()
        assert list_open([peer]) == [False]


class OwnCall:
    """A call of the server to itself."""

    def __init__(self, code: grpc.StatusCode | None = grpc.StatusCode.OK) -> None:
        self.status = code

    def done(self) -> bool:
        return self.status is not None

    def code(self) -> grpc.StatusCode | None:
        return self.status


class TestStrayBytes:
    """Bytes that belong to no call, on a transport that knows its calls."""

    def sweep_three_times(self, connections: Connections) -> None:
        """Call the server, see that it has answered, and check again: replies may have been in transit."""
        for _ in range(3):
            connections.sweep()

    def test_close_only_their_connection(self, port: Port) -> None:
        loose, fine = port.connect(2)
        connections = make(port, find_calls=no_calls, ask=OwnCall)
        loose.send(TOO_MANY)
        fine.send(MAX_STRAY_BYTES)
        self.sweep_three_times(connections)
        assert list_open([loose, fine]) == [False, True]

    def test_exclude_messages_that_grpc_discards(self, port: Port) -> None:
        """A message over the limit: its call has ended, and its bytes still arrive."""
        [peer] = port.connect(1)
        connections = make(port, find_calls=no_calls, ask=OwnCall)
        connections.excuse(peer.name)
        peer.send(TOO_MANY)
        self.sweep_three_times(connections)
        assert list_open([peer]) == [True]

    @pytest.mark.parametrize("is_waiting", [True, False])
    def test_exclude_connections_with_a_call(self, port: Port, is_waiting: bool) -> None:
        """A call that waits for its message, or that runs."""
        [peer] = port.connect(1)
        waiting = {peer.name: 2**30} if is_waiting else {}
        connections = make(port, find_calls=lambda: (waiting, {peer.name}), ask=OwnCall)
        peer.send(TOO_MANY)
        self.sweep_three_times(connections)
        assert list_open([peer]) == [True]

    def test_exclude_calls_that_ended_between_two_checks(self, port: Port) -> None:
        [fine] = port.connect(1)
        connections = make(port, find_calls=no_calls, ask=OwnCall)
        for _ in range(4):
            fine.send(50_000)
            connections.count_message(fine.name, 50_000)
            self.sweep_three_times(connections)
        assert list_open([fine]) == [True]

    def test_exclude_calls_that_ended_before_the_server_saw_them(self, port: Port) -> None:
        """The server answers them: the bytes that it sent show it."""
        answered, unanswered = port.connect(2)
        connections = make(port, find_calls=no_calls, ask=OwnCall)
        for peer in (answered, unanswered):
            peer.send(TOO_MANY)
        connections.sweep()
        answered.server.sendall(bytes(TOO_MANY // STRAY_BYTES_PER_BYTE_SENT + 1))
        assert len(answered.client.recv(1000)) > 100
        self.sweep_three_times(connections)
        assert list_open([answered, unanswered]) == [True, False]

    def test_are_unknown_until_the_server_has_seen_all_calls(self, port: Port) -> None:
        """The server calls itself; the reply follows all calls that arrived earlier."""
        [sender] = port.connect(1)
        asked: list[OwnCall] = []

        def ask() -> OwnCall:
            asked.append(OwnCall(None))
            return asked[-1]

        connections = make(port, find_calls=no_calls, ask=ask)
        sender.send(TOO_MANY)
        for _ in range(3):
            connections.sweep()
        assert (list_open([sender]), len(asked)) == ([True], 1)
        asked[0].status = grpc.StatusCode.DEADLINE_EXCEEDED
        for _ in range(3):
            connections.sweep()
        assert (list_open([sender]), len(asked)) == ([True], 2)
        asked[1].status = grpc.StatusCode.OK
        connections.sweep()
        assert list_open([sender]) == [True]
        connections.sweep()
        assert list_open([sender]) == [False]


def test_connections_are_closed_by_name_and_the_reason_is_logged(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    peers = port.connect(3)
    make(port).close({peers[1].name: "a reply was not read", "ipv4:10.0.0.7:51200": "closed already"})
    assert list_open(peers) == [True, False, True]
    assert caplog.messages == ["connection closed: a reply was not read"]


class TestTooManyConnections:
    def test_close_the_connections_that_were_idle_longest(self, port: Port) -> None:
        peers = port.connect(5)
        connections = make(port)
        peers[1].send(1)
        peers[3].send(1)
        wait_until(lambda: read_idle_ms(peers[1]) > 100)
        for number in (0, 2, 4):
            peers[number].send(1)
        connections._limit = limit_alone(3)
        connections.sweep()
        assert list_open(peers) == [True, False, True, False, True]

    def test_exclude_connections_that_their_clients_have_closed(self, port: Port) -> None:
        peers = port.connect(4)
        for peer in peers[:2]:
            peer.client.shutdown(socket.SHUT_WR)
        wait_until(lambda: all(read_tcp_info(peer)[0] == CLOSE_WAIT for peer in peers[:2]))
        make(port, limit=2)
        assert list_open(peers[2:]) == [True] * 2

    def test_are_counted_for_this_port_alone(self, port: Port) -> None:
        with ExitStack() as stack:
            others = Port(stack).connect(3)
            own = port.connect(1)
            make(port, limit=1)
            assert list_open(others + own) == [True] * 4


def read_tcp_info(peer: Peer) -> bytes:
    return peer.server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)


def read_received_bytes(peer: Peer) -> int:
    return int.from_bytes(read_tcp_info(peer)[128:136], sys.byteorder)


def read_idle_ms(peer: Peer) -> int:
    return int.from_bytes(read_tcp_info(peer)[52:56], sys.byteorder)


class TestFinish:
    def test_sent_bytes_arrive_before_the_end_of_the_connection(self, port: Port) -> None:
        [peer] = port.connect(1)
        peer.server.sendall(b"the last answer")
        ended = spawn(make(port).finish, 3600)
        assert peer.client.makefile("rb").read() == b"the last answer"
        assert not ended.done()
        peer.client.close()
        ended.result(WAIT_S)  # as soon as the last client has disconnected

    def test_new_connections_are_refused(self, port: Port) -> None:
        make(port).finish(0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port.number), WAIT_S)

    def test_accept_fails_without_an_error_of_the_socket(self, port: Port) -> None:
        """The core of gRPC would log such an error."""
        make(port).finish(0)
        with pytest.raises(BlockingIOError):
            port.socket.accept()

    def test_the_wait_for_clients_that_stay_connected_is_limited(self, port: Port) -> None:
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
def test_connections_have_the_names_that_grpc_uses(peer: tuple, name: str) -> None:
    class Connected:
        def getpeername(self) -> tuple:
            return peer

    connected: Any = Connected()
    assert name_peer(connected) == name


def test_connections_are_checked_repeatedly(port: Port) -> None:
    [peer] = port.connect(1)
    connections = Connections(port.number, limit_alone(LIMIT), limit_alone(MAX_BYTES))
    connections.start()
    try:
        peer.send(MAX_BYTES + 1)
        wait_until(lambda: not peer.is_open())
    finally:
        connections.finish(0)


class TestUnixSockets:
    """The kernel reports little about them except their number."""

    @pytest.fixture
    def path(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:  # pytest's own path may be too long for a socket
            yield f"{folder}/socket"

    def test_beyond_the_limit_the_newest_are_closed(self, path: str, caplog: pytest.LogCaptureFixture) -> None:
        with ExitStack() as stack:
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(path)
            listening.listen()
            connections = Connections(path, limit_alone(3), limit_alone(MAX_BYTES))

            def connect() -> tuple[socket.socket, socket.socket]:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(path)
                client.setblocking(False)
                return client, stack.enter_context(listening.accept()[0])

            peers = [connect() for _ in range(3)]
            connections.sweep()
            assert not caplog.messages
            peers += [connect() for _ in range(2)]
            for _ in range(2):  # at the second one, the transport has not closed them yet
                connections.sweep()
                assert caplog.messages == ["connection closed: 5 connections are open, the limit is 3"] * 2
            assert [is_closed(client) for client, _ in peers] == [False] * 3 + [True] * 2
            for _, server in (peers[0], *peers[3:]):  # as the transport does: one has left by itself
                server.close()
            peers += [connect()]
            connections.sweep()
            assert len(caplog.messages) == 2
            peers += [connect()]
            connections.sweep()
            assert [is_closed(client) for client, _ in peers[5:]] == [False, True]

    @pytest.mark.native_lacks("Unix sockets")
    def test_a_server_holds_its_clients_to_the_limit(self, path: str, colours: Path) -> None:
        with serving(colours, "--host", f"unix:{path}", "--max-connections", 4) as server, ExitStack() as stack:
            client = stack.enter_context(Client(f"unix:{path}"))
            assert client.predict(RED).label == "red"
            for _ in range(20):
                stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
            wait_until(lambda: "connections are open, the limit is 4" in server.logged())
            assert client.predict(RED).label == "red"


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
