"""The processor time and memory of a server on this machine."""

from __future__ import annotations

import psutil

HERE = ("127.0.0.1", "::1", "localhost")


def find_server(address: str) -> list[psutil.Process]:
    """Find the processes that listen on an address: more than one if the server has several workers.

    Args:
        address: HOST:PORT.

    Returns:
        The processes; none if they are on another machine or belong to another user.
    """
    host, _, port_text = address.rpartition(":")
    if host.strip("[]") not in HERE or not port_text.isdecimal():
        return []
    port = int(port_text)
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return []
    found = {
        one.pid
        for one in connections
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid
    }
    return [psutil.Process(pid) for pid in sorted(found)]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """The processor time that processes and their children have used so far, in seconds."""
    return sum(times.user + times.system for times in (one.cpu_times() for one in _list_all(processes)))


def resident_bytes(processes: list[psutil.Process]) -> int:
    """The resident memory of processes and their children, in bytes; memory that they share counts in each."""
    return sum(one.memory_info().rss for one in _list_all(processes))


def _list_all(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Processes and their children, each once: a supervisor listens, too, and its workers are its children."""
    return list(
        {one.pid: one for process in processes for one in (process, *process.children(recursive=True))}.values()
    )
