"""Plan replicas, memory and network for a rate of images, from the figures of ``evalmode bench --json``.

    evalmode bench ADDRESS --image photo.jpg --json > bench.json
    python -m benchmarks.speed.scaling bench.json --cpus 4

The figures are those of one server, measured: the processor time and the size of a request, the memory of the server.
The rest is arithmetic: the processor time of a request times the rate, divided by the share of the processors that may
be busy.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RATES = (1_000, 100_000, 10_000_000)
CPUS, BUSY = 4.0, 0.6  # of a replica, unless the options say otherwise
REPLY_BYTES = 1_000  # five labels with their probabilities, HTTP/2 and TCP headers
HEADER_BYTES = 500  # headers of a request and acknowledgements, beside its message
GIB, GIGABIT = 2**30, 1e9


@dataclass(frozen=True)
class Replica:
    """What was measured of one server, and what it is given.

    Attributes:
        cpu_s: Processor time of a request, in seconds.
        request_bytes: The size of a request.
        memory_bytes: Resident memory.
        cpus: Its processors.
        busy: The share of them that may be busy, so that latency stays low and a failed zone can be absorbed.
    """

    cpu_s: float
    request_bytes: int
    memory_bytes: int
    cpus: float
    busy: float

    def __post_init__(self) -> None:
        if not (self.cpu_s > 0 and self.cpus > 0 and 0 < self.busy <= 1):
            raise ValueError(f"{self}: processor time and processors must be above 0, busy above 0 and at most 1")

    @property
    def rate(self) -> float:
        """Images per second that it is planned for."""
        return self.cpus * self.busy / self.cpu_s


@dataclass(frozen=True)
class Plan:
    """What a rate needs.

    Attributes:
        rate: Images per second.
        replicas: The number of servers, at least 2.
        cpus: Their processors.
        memory_gib: Their memory.
        received_gbit: Network traffic to the servers, in Gbit/s.
        sent_gbit: From them.
    """

    rate: int
    replicas: int
    cpus: float
    memory_gib: float
    received_gbit: float
    sent_gbit: float


def plan(rate: int, replica: Replica) -> Plan:
    """Plan a rate of images per second."""
    replicas = max(
        2, math.ceil(round(rate / replica.rate, 6))
    )  # two, so that one can be replaced; 44.0000001 servers are 44
    return Plan(
        rate,
        replicas,
        replicas * replica.cpus,
        replicas * replica.memory_bytes / GIB,
        rate * (replica.request_bytes + HEADER_BYTES) * 8 / GIGABIT,
        rate * REPLY_BYTES * 8 / GIGABIT,
    )


def read_replica(figures: dict[str, Any], cpus: float, busy: float) -> Replica:
    """Read the output of ``evalmode bench --json``: the load with the highest rate.

    Args:
        figures: The output.
        cpus: The processors of a replica.
        busy: The share of them that may be busy.

    Returns:
        What was measured.

    Raises:
        SystemExit: The server ran on another machine, so its processor time is unknown.
    """
    row = max(figures["loads"], key=lambda one: one["rate"])
    if not row["server_cpu_us"]:
        raise SystemExit("the figures lack server_cpu_us: run evalmode bench on the server's machine")
    return Replica(row["server_cpu_us"] / 1e6, figures["request_bytes"], row["server_memory_bytes"], cpus, busy)


def show(plans: list[Plan]) -> str:
    """A Markdown table."""
    lines = [
        "| images/s | replicas | CPUs | memory, GiB | received, Gbit/s | sent, Gbit/s |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one.rate:,} | {one.replicas:,} | {one.cpus:,.0f} | {one.memory_gib:,.1f} | {one.received_gbit:,.2f} | "
        f"{one.sent_gbit:,.2f} |"
        for one in plans
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("figures", type=Path, help="output of evalmode bench --json")
    parser.add_argument("--cpus", type=float, default=CPUS, help="processors of a replica")
    parser.add_argument("--busy", type=float, default=BUSY, help="share of them that may be busy")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="images per second")
    given = parser.parse_args()
    replica = read_replica(json.loads(given.figures.read_text()), given.cpus, given.busy)
    print(f"{replica.cpu_s * 1e3:.2f} ms of processor time a request: {replica.rate:,.0f} images/s a replica\n")
    print(show([plan(rate, replica) for rate in given.rates]))


if __name__ == "__main__":
    main()
