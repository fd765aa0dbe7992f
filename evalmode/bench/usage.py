"""What a server on this machine costs: the processor time of whoever listens on a port."""

from __future__ import annotations

import psutil

HERE = ("127.0.0.1", "::1", "localhost")


def find_server(address: str) -> psutil.Process | None:
    """The process that listens on HOST:PORT here; None: it is on another machine, or another user's."""
    host, _, port_text = address.rpartition(":")
    if host.strip("[]") not in HERE or not port_text.isdecimal():
        return None
    port = int(port_text)
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for one in connections:
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
            return psutil.Process(one.pid)
    return None


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process and of its children so far."""
    spent = [process, *process.children(recursive=True)]
    return sum(times.user + times.system for times in (one.cpu_times() for one in spent))
