"""Plan replicas, memory and network for a rate of images, from the figures of ``evalmode bench --json``.

    evalmode bench ADDRESS --image photo.jpg --json > bench.json
    python -m benchmarks.speed.scaling bench.json --image-kib 40 --memory-mib 400 --cpus 4

The figures are those of one server, measured. The rest is arithmetic: the processor time of a request times the rate,
divided by the share of the processors that may be busy.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RATES = (1_000, 100_000, 10_000_000)
REPLY_BYTES = 1_000  # five labels with their probabilities, HTTP/2 and TCP headers
REQUEST_BYTES = 500  # headers and acknowledgements of a request, beside the image
GIB, GIGABIT = 2**30, 1e9


@dataclass(frozen=True)
class Replica:
    """What was measured of one server, and what it is given.

    Attributes:
        cpu_s: Processor time of a request, in seconds.
        image_bytes: The size of an image.
        memory_bytes: Resident memory.
        cpus: Its processors.
        busy: The share of them that may be busy, so that latency stays low and a failed zone can be absorbed.
    """

    cpu_s: float
    image_bytes: int
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
    replicas = max(2, math.ceil(rate / replica.rate))  # two, so that one can be replaced
    return Plan(
        rate,
        replicas,
        replicas * replica.cpus,
        replicas * replica.memory_bytes / GIB,
        rate * (replica.image_bytes + REQUEST_BYTES) * 8 / GIGABIT,
        rate * REPLY_BYTES * 8 / GIGABIT,
    )


def read_cpu_s(figures: dict[str, Any]) -> float:
    """The processor time of a request under the largest load of ``evalmode bench --json``, in seconds."""
    row = max(figures["loads"], key=lambda one: one["rate"])
    if not row["server_cpu_us"]:
        raise SystemExit("the figures lack server_cpu_us: run evalmode bench on the server's machine")
    return float(row["server_cpu_us"]) / 1e6


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
    parser.add_argument("--image-kib", type=float, required=True, help="size of an image")
    parser.add_argument("--memory-mib", type=float, required=True, help="process_resident_memory_bytes of a server")
    parser.add_argument("--cpus", type=float, default=4, help="processors of a replica")
    parser.add_argument("--busy", type=float, default=0.6, help="share of them that may be busy")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="images per second")
    given = parser.parse_args()
    cpu_s = read_cpu_s(json.loads(given.figures.read_text()))
    replica = Replica(cpu_s, int(given.image_kib * 2**10), int(given.memory_mib * 2**20), given.cpus, given.busy)
    print(f"{cpu_s * 1e3:.2f} ms of processor time a request: {replica.rate:,.0f} images/s a replica\n")
    print(show([plan(rate, replica) for rate in given.rates]))


if __name__ == "__main__":
    main()
