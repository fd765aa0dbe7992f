"""Where a server may listen: what options say, and why an address cannot be had."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path

from serving.errors import AddressUnavailable

UNIX = "unix:"
PORT, METRICS_PORT = "--port", "--metrics-port"
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104  all interfaces
MAX_SOCKET_PATH = 107  # bytes: struct sockaddr_un of unix(7)
_REMEDIES = {
    errno.EACCES: "this user may not: take a --port from 1024 on or give the process CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "is the port in use? Stop what listens there or take another --port",
    errno.EADDRNOTAVAIL: "this machine has no such address: use one of its own, or 0.0.0.0 or :: for all",
    errno.EINVAL: "an address of one link needs its interface, such as fe80::1%eth0",
    errno.EAFNOSUPPORT: "this machine has no IPv6: use 0.0.0.0",
}


def join_address(host: str, port: int) -> str:
    """An address as grpc takes it, such as ``127.0.0.1:8001``, ``[::1]:8001`` or ``unix:PATH``.

    Args:
        host: Of ``--host``: an address, a name, or ``unix:PATH``.
        port: Without a meaning for a Unix socket.
    """
    if host.startswith(UNIX):
        return UNIX + _socket_path(host)
    bare = _strip(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def find_local(address: str, port: int) -> str:
    """Where this machine reaches what listens at an address.

    Args:
        address: As ``join_address`` makes it.
        port: The one that is listened on.
    """
    host = _strip(address.rpartition(":")[0])
    if address.startswith(UNIX):
        return address
    return join_address("127.0.0.1" if host in ANYWHERE else host, port)


def find_metrics_host(host: str) -> str:
    """The host of metrics beside that of ``--host``."""
    return "127.0.0.1" if host.startswith(UNIX) else host


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host of ``--host``."""
    if host.startswith(UNIX) or host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(_strip(host)).is_loopback
    return False


def check_address(host: str, port: int, option: str = PORT) -> None:
    """Check that a server could listen, before it loads anything.

    Args:
        host: Of ``--host``.
        port: 0 for a free one.
        option: That the port comes from.

    Raises:
        AddressUnavailable: It could not, and why.
    """
    if host.startswith(UNIX):
        _check_socket(_socket_path(host))
        return
    found = resolve(host, port)
    for number, (family, address) in enumerate(found, start=1):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(address)
                return  # a name may have addresses that are not here: one will do
        except OSError as error:
            if number == len(found):
                raise explain(error, host, port, option) from error


def resolve(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """The families and addresses of a host.

    Args:
        host: An address or a name.
        port: That goes with each.

    Raises:
        AddressUnavailable: There is no such host.
    """
    bare = _strip(host)
    if not bare or (":" in bare and not _is_ipv6(bare)):
        raise AddressUnavailable(
            f"--host {host!r} is not an address: use an IPv4 or IPv6 address, a name or unix:PATH; the port goes into "
            "--port"
        )
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that is no name of a host
        why = error.strerror if isinstance(error, OSError) else "it cannot be looked up"
        raise AddressUnavailable(
            f"--host {host} is not known here: {why}; use an address of this machine, or 0.0.0.0 or :: for all"
        ) from error
    return [(family, address) for family, _, _, _, address in found]


def explain(error: OSError, host: str, port: int, option: str) -> AddressUnavailable:
    """Why an address cannot be listened on.

    Args:
        error: Of the attempt.
        host: Of ``--host``.
        port: That was wanted.
        option: That the port comes from.
    """
    what = "cannot listen" if option == PORT else "metrics cannot listen"
    remedy = _REMEDIES.get(error.errno or 0, "take another --host").replace(PORT, option)
    return AddressUnavailable(f"{what} on {join_address(host, port)}: {remedy} ({error.strerror})")


def _check_socket(path: str) -> None:
    if not path or len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise AddressUnavailable(f"--host {UNIX}{path}: a path of 1 to {MAX_SOCKET_PATH} bytes is wanted")
    folder = Path(path).parent
    if not folder.is_dir():
        raise AddressUnavailable(f"--host {UNIX}{path}: {folder} is not a folder; make it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise AddressUnavailable(f"--host {UNIX}{path}: {folder} cannot be written by this user")
    if not Path(path).exists():
        return
    if not Path(path).is_socket():
        raise AddressUnavailable(f"--host {UNIX}{path}: there is a file that is no socket; take another path")
    with socket.socket(socket.AF_UNIX) as other, suppress(OSError):  # what a server left behind is replaced
        other.connect(path)
        raise AddressUnavailable(f"--host {UNIX}{path}: another server listens there; stop it, or take another path")


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
