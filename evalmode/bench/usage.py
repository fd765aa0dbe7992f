"""The processor time of a server on this machine."""

from __future__ import annotations

import psutil

HERE = ("127.0.0.1", "::1", "localhost")


def find_server(address: str) -> psutil.Process | None:
    """Find the process that listens on an address.

    Args:
        address: HOST:PORT.

    Returns:
        The process; None if it is on another machine or belongs to another user.
    """
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
    """The processor time that a process and its children have used so far, in seconds."""
    spent = [process, *process.children(recursive=True)]
    return sum(times.user + times.system for times in (one.cpu_times() for one in spent))
