"""The port that several workers listen on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from serving.transports.addresses import PORT, explain_unavailable, resolve


@contextmanager
def hold_port(host: str, port: int) -> Iterator[int]:
    """Bind a port without listening, so that workers can listen on it and other servers cannot.

    Every socket of the port has SO_REUSEPORT, so the kernel distributes connections to those that listen. Workers can
    come and go, and the port stays taken meanwhile.

    Args:
        host: The value of ``--host``.
        port: The port; 0 chooses a free one.

    Yields:
        The port.

    Raises:
        AddressUnavailable: No address of the host can be bound.
    """
    with ExitStack() as held:
        found = resolve(host, port)
        bound = 0
        for number, (family, (name, _, *rest)) in enumerate(found, start=1):
            one = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that ended may linger
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                one.bind((name, bound or port, *rest))
            except OSError as error:
                if number == len(found) and not bound:
                    raise explain_unavailable(error, host, port, PORT) from error
                continue
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # otherwise another server could bind it, too
            bound = one.getsockname()[1]
        yield bound
