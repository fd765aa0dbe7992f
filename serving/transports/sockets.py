"""The sockets of this process at a listening address, found through /proc, and what Linux counts of each.

Neither grpcio nor pygrpc-native gives access to its sockets.

Source: struct tcp_info in Linux's include/uapi/linux/tcp.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LIBC, _UNSPECIFIED = ctypes.CDLL(None), bytes(16)  # struct sockaddr with the family AF_UNSPEC
SPARE_DESCRIPTORS = 64  # below the limit of the process
_DESCRIPTORS = Path("/proc/self/fd")
_OPEN_STATES = (1, 4, 5)  # ESTABLISHED, FIN_WAIT1, FIN_WAIT2: the peer has not closed its side
_LAST_RECEIVED_MS = struct.Struct("=52xI")  # tcpi_last_data_recv
_SENT = struct.Struct("=200xQ")  # tcpi_bytes_sent
_RECEIVED = struct.Struct("=128xQ")  # tcpi_bytes_received
_UNREAD = struct.Struct("=i")


@contextmanager
def find_connections(address: int | str) -> Iterator[list[socket.socket]]:
    """Duplicates of the accepted connections, which are closed when the block ends.

    Args:
        address: The listening address: a TCP port, or the path of a Unix socket.
    """
    with _find_sockets(address) as sockets:
        yield [one for _, one in sockets if not _is_listening(one)]


def stop_listening(address: int | str) -> None:
    """Refuse new connections at an address from now on.

    Each listening socket is replaced by one to which no client can connect: if it were shut down instead, grpc's core
    would log an error.

    Args:
        address: See ``find_connections``.
    """
    with _find_sockets(address) as sockets:
        for descriptor, one in sockets:
            if _is_listening(one):
                with socket.socket(socket.AF_UNIX) as unreachable:
                    unreachable.bind("")  # Linux chooses an abstract name
                    unreachable.listen()
                    unreachable.setblocking(False)
                    os.dup2(unreachable.fileno(), descriptor)


def close_listeners_first(address: int | str, descriptors: int) -> None:
    """Let the kernel close the listening sockets of this process before its connections if it is killed.

    Linux closes files in the descending order of their highest descriptors. With the connections closed first, a client
    that connects again at once may reach a listening socket that is about to close. Its attempt fails, and grpc waits
    for a second before the next one.

    Args:
        address: See ``find_connections``.
        descriptors: More than all other files of this process need.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with _find_sockets(address) as sockets:
        for descriptor, one in sockets:
            if _is_listening(one):
                fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, min(descriptors, soft - SPARE_DESCRIPTORS))


def is_open(connection: socket.socket) -> bool:
    """Whether the peer has not closed its side. This is unknown for a Unix socket, which counts as closed."""
    return connection.family != socket.AF_UNIX and _tcp_info(connection)[0] in _OPEN_STATES


def count_bytes(connection: socket.socket) -> tuple[int, int]:
    """The number of bytes that the transport has read from a connection, and the number that it has sent."""
    info = _tcp_info(connection)
    (received,), (sent,) = _RECEIVED.unpack_from(info), _SENT.unpack_from(info)
    (unread,) = _UNREAD.unpack(fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(_UNREAD.size)))
    return received - unread, sent


def measure_silence_ms(connection: socket.socket) -> int:
    """Milliseconds since the last data arrived on a connection."""
    (silent_ms,) = _LAST_RECEIVED_MS.unpack_from(_tcp_info(connection))
    return int(silent_ms)


def name_peer(connection: socket.socket) -> str:
    """The peer of a connection as grpc names it: ``ipv4:HOST:PORT`` or ``ipv6:%5BHOST%5D:PORT``."""
    host, port = connection.getpeername()[:2]
    host = host.removeprefix("::ffff:")
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def reset(connection: socket.socket) -> None:
    """Reset a connection at once. ``shutdown`` would let the transport read data that still arrives.

    A Unix socket cannot be reset. It is shut down in both directions.

    Source: connect(2): connecting to an address of the family AF_UNSPEC dissolves the association.
    """
    if connection.family == socket.AF_UNIX:
        with suppress(OSError):  # the peer may have disconnected
            connection.shutdown(socket.SHUT_RDWR)
        return
    _LIBC.connect(connection.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))


def end_sending(connection: socket.socket) -> None:
    """Close the sending side of a connection. Data that was sent before still arrives."""
    with suppress(OSError):  # the peer may have disconnected
        connection.shutdown(socket.SHUT_WR)


@contextmanager
def _find_sockets(address: int | str) -> Iterator[list[tuple[int, socket.socket]]]:
    """The descriptors of this process's sockets at an address, each with a duplicate for the block."""
    found: list[tuple[int, socket.socket]] = []
    try:
        for descriptor in [int(path.name) for path in _DESCRIPTORS.iterdir()]:
            with suppress(OSError):  # it may have been closed, or reused for a file
                if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    continue
                one = _open_duplicate(descriptor)
                name = one.getsockname()
                if name == address if isinstance(address, str) else name[1:2] == (address,):
                    found.append((descriptor, one))
                else:
                    one.close()
        yield found
    finally:
        for _, one in found:
            one.close()


def _open_duplicate(descriptor: int) -> socket.socket:
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def _is_listening(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _tcp_info(one: socket.socket) -> bytes:
    return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
