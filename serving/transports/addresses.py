"""Listening addresses: from ``--host`` and ``--port`` to addresses, and why a server cannot listen on one."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from evalmode.errors import AddressUnavailable

Bound = TypeVar("Bound")

UNIX = "unix:"
PORT, METRICS_PORT = "--port", "--metrics-port"
ALL_INTERFACES = ("0.0.0.0", "::")  # noqa: S104
MAX_SOCKET_PATH = 107  # bytes: struct sockaddr_un of unix(7)
_REMEDIES = {
    errno.EACCES: "permission denied: use a --port from 1024 on, or give the process CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "the port is in use: stop the other process, or use another --port",
    errno.EADDRNOTAVAIL: "this machine has no such address: use one of its own, or 0.0.0.0 or :: for all",
    errno.EINVAL: "a link-local address needs its interface, such as fe80::1%eth0",
    errno.EAFNOSUPPORT: "this machine has no IPv6: use 0.0.0.0",
}


def join_address(host: str, port: int) -> str:
    """Return an address in grpc's form, such as ``127.0.0.1:8001``, ``[::1]:8001`` or ``unix:PATH``.

    Args:
        host: The value of ``--host``: an address, a name, or ``unix:PATH``.
        port: The port, which is ignored for a Unix socket.
    """
    if host.startswith(UNIX):
        return UNIX + _socket_path(host)
    bare = _strip(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def find_local(address: str, port: int) -> str:
    """Return the address at which clients on this machine reach a server.

    Args:
        address: The address that the server listens on, as ``join_address`` returns it.
        port: The port that it listens on, which differs from that of ``address`` if that is 0.
    """
    host = _strip(address.rpartition(":")[0])
    if address.startswith(UNIX):
        return address
    return join_address("127.0.0.1" if host in ALL_INTERFACES else host, port)


def find_metrics_host(host: str) -> str:
    """Return the host of the metrics of a server with this ``--host``: loopback if that is a Unix socket."""
    return "127.0.0.1" if host.startswith(UNIX) else host


def is_loopback(host: str) -> bool:
    """Whether only clients on this machine reach a server with this ``--host``."""
    if host.startswith(UNIX) or host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(_strip(host)).is_loopback
    return False


def check_address(host: str, port: int, option: str = PORT) -> None:
    """Check that a server can listen on an address, before it loads anything.

    Args:
        host: The value of ``--host``.
        port: The port; 0 chooses a free one.
        option: The option that sets the port, for the error message.

    Raises:
        AddressUnavailable: It cannot listen on the address.
    """
    if host.startswith(UNIX):
        _check_socket(_socket_path(host))
        return
    bind_first(host, port, option, _try_to_bind)


def bind_first(host: str, port: int, option: str, bind: Callable[[int, tuple[object, ...]], Bound]) -> Bound:
    """Bind the first address of a host that can be bound: a name may also have addresses of other machines.

    Args:
        host: The host.
        port: The port; 0 chooses a free one.
        option: The option that sets the port, for the error message.
        bind: Binds an address of a family, or raises ``OSError``.

    Returns:
        What ``bind`` returns.

    Raises:
        AddressUnavailable: The host is unknown, or none of its addresses can be bound.
    """
    *others, last = resolve(host, port)
    for family, address in others:
        with suppress(OSError):
            return bind(family, address)
    try:
        return bind(*last)
    except OSError as error:
        raise explain_unavailable(error, host, port, option) from error


def resolve(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """Resolve a host.

    Args:
        host: An address or a name.
        port: The port for the addresses.

    Returns:
        The family and the address for ``socket.bind``, for each address of the host.

    Raises:
        AddressUnavailable: The host is unknown.
    """
    bare = _strip(host)
    if not bare or (":" in bare and not _is_ipv6(bare)):
        raise AddressUnavailable(
            f"--host {host!r} is not an address: use an IPv4 or IPv6 address, a name or unix:PATH, and set the port "
            "with --port"
        )
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: the name cannot be a host name
        why = error.strerror if isinstance(error, OSError) else "it is not a valid host name"
        raise AddressUnavailable(
            f"--host {host} is unknown: {why}; use an address of this machine, or 0.0.0.0 or :: for all"
        ) from error
    return [(family, address) for family, _, _, _, address in found]


def explain_unavailable(error: OSError, host: str, port: int, option: str) -> AddressUnavailable:
    """Return the error that explains why a server cannot listen on an address.

    Args:
        error: The error of ``socket.bind``.
        host: The value of ``--host``.
        port: The port.
        option: The option that sets the port.
    """
    what = "cannot listen" if option == PORT else "metrics cannot listen"
    remedy = _REMEDIES.get(error.errno or 0, "use another --host").replace(PORT, option)
    return AddressUnavailable(f"{what} on {join_address(host, port)}: {remedy} ({error.strerror})")


def _try_to_bind(family: int, address: tuple[object, ...]) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(address)


def _check_socket(path: str) -> None:
    if not path or len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise AddressUnavailable(f"--host {UNIX}{path}: the path must have 1 to {MAX_SOCKET_PATH} bytes")
    folder = Path(path).parent
    if not folder.is_dir():
        raise AddressUnavailable(f"--host {UNIX}{path}: {folder} is not a folder: create it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise AddressUnavailable(f"--host {UNIX}{path}: this user has no permission to write to {folder}")
    if not Path(path).exists():
        return
    if not Path(path).is_socket():
        raise AddressUnavailable(f"--host {UNIX}{path}: a file that is not a socket exists there: use another path")
    with socket.socket(socket.AF_UNIX) as other, suppress(OSError):  # the socket of a server that ended is replaced
        other.connect(path)
        raise AddressUnavailable(f"--host {UNIX}{path}: another server listens there: stop it, or use another path")


def _socket_path(host: str) -> str:
    """The path of ``unix:PATH`` or ``unix:///PATH``."""
    path = host.removeprefix(UNIX)
    return path.removeprefix("//") if path.startswith("///") else path


def _strip(host: str) -> str:
    """A host without the brackets of an IPv6 address."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _is_ipv6(text: str) -> bool:
    with suppress(ValueError):
        return isinstance(ipaddress.ip_address(text), ipaddress.IPv6Address)
    return False
