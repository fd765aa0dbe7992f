"""Tables of measured figures about containers, proxies and the plan for many machines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.speed.scaling import BUSY, CPUS, RATES, Replica, plan, read_replica, show
from docs.tables.markdown import draw
from docs.tables.measured.results import find_result, read_result

NETWORKS = {"small": "`reference`, 32x32 raw pixels", "photo": "EfficientNet-Lite0, 224x224, a JPEG of 500x375"}
EVENTS = {"drain": "one drains", "roll": "both are rolled over", "kill": "one is killed (`kill -9`)"}


def show_containers() -> str:
    """Show the start-up, throughput and memory of the serving image."""
    figures = read_result(find_result("containers"))
    rows = [
        (
            one["transport"],
            f"{one['cpus']:g}",
            f"{statistics.median(one['starts_s']):.1f}",
            f"{one['small']['rate']:,.0f}",
            f"{one['small']['p99_ms']:,.0f}",
            f"{one['photo']['rate']:,.1f}",
            f"{one['photo']['p99_ms']:,.0f}",
            f"{one['memory_mib']:.0f}",
        )
        for one in figures["servers"]
    ]
    head = ("transport", "CPUs", "start, s", "32x32/s", "their p99, ms", "photos/s", "their p99, ms", "memory, MiB")
    return draw(head, rows) + f"\nThe image has {figures['size_mb']:.0f} MB compressed above the base image.\n"


def show_proxies() -> str:
    """Show what became of requests through the proxies."""
    proxies = read_result(find_result("proxies"))["proxies"]
    spreads = [
        " and ".join(f"{share / sum(one['steady']['shares']):.1%}" for share in one["steady"]["shares"])
        for one in proxies.values()
    ]
    rows = [(text, *(describe_loss(one[event]) for one in proxies.values())) for event, text in EVENTS.items()]
    return draw(("", *proxies), [("answers of the two servers", *spreads), *rows])


def describe_loss(outcome: Mapping[str, Any]) -> str:
    """Say how many of the requests of an event failed.

    Args:
        outcome: The event's figures.
    """
    failed = sum(outcome["failed"].values())
    return f"{failed} of {failed + outcome['answered']:,}"


def show_measured() -> str:
    """Show the figures that the plans begin with."""
    rows = [
        (
            NETWORKS[name],
            f"{replica.cpu_s * 1e3:.2f} ms",
            f"{replica.request_bytes:,} B",
            f"{replica.memory_bytes / 2**20:.0f} MiB",
        )
        for name, replica in read_replicas().items()
    ]
    return draw(("network and request", "processor time of a request", "size of a request", "memory of a server"), rows)


def show_plans() -> str:
    """Show the plans for all rates."""
    parts = [
        f"**{NETWORKS[name]}**: {replica.rate:,.0f} images/s a replica of {CPUS:g} processors.\n\n"
        + show([plan(rate, replica) for rate in RATES])
        for name, replica in read_replicas().items()
    ]
    return "\n\n".join(parts) + "\n"


def read_replicas() -> dict[str, Replica]:
    """Read the figures of one server by grpcio with all CPUs of the machine, by network."""
    servers = read_result(find_result("containers"))["servers"]
    most = max((one for one in servers if one["transport"] == "grpcio"), key=lambda one: one["cpus"])
    return {
        name: read_replica({"request_bytes": most[name]["request_bytes"], "loads": [most[name]]}, CPUS, BUSY)
        for name in NETWORKS
    }
