"""Overload a server: it must refuse the excess, and answer as many requests as without overload.

    python -m benchmarks.soak.overload --out FILE [--transport native]

For a light network (0.2 ms) and a heavy one, with raw pixels and JPEG: the capacity, measured by 64 callers in a closed
loop; then 1.5 and 3 times that rate in an open loop, with patient callers (10 s) and with callers whose deadline is
five times the latency of an idle server (at least 50 ms, at most 1 s). Health is checked 20 times per second. Exit 1 if
fewer than 0.9 of the capacity are answered within their deadlines, an error is not RESOURCE_EXHAUSTED with details,
health's p99 is 100 ms or more, or the server does not recover.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.generator import Generating
from benchmarks.honest import Asking
from benchmarks.record import add_out, write_result
from benchmarks.servers import (
    Server,
    add_server_options,
    certify_untrained,
    export_untrained,
    list_server_options,
    serving,
)
from evalmode.artifact.publishing import publish
from evalmode.images.pixels import PixelContract
from evalmode.wire import classifier_pb2

CALLERS = 64
WARM_S, CAPACITY_S, ALONE_S, SETTLE_S = 2.0, 8.0, 2.0, 2.0
PATIENCE_S = 10.0
IMPATIENCE, SHORTEST_S, LONGEST_S = 5.0, 0.05, 1.0
GOODPUT, HEALTH_MS, LATE_MS, OFFERED = 0.9, 100.0, 20.0, 0.98
LATE = ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED (by the client)", "OK (late)")


@dataclass(frozen=True)
class Network:
    """An untrained network; its answers do not matter here.

    Attributes:
        width: Width of `compact`.
        side: Side of its images in pixels.
    """

    width: float
    side: int


NETWORKS = {"light": Network(1.25, 32), "heavy": Network(8, 64)}
INPUTS = ("raw", "jpeg")


def main() -> None:
    """Measure, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    add_server_options(parser)
    parser.add_argument("--seconds", type=float, default=60, help="of each overload")
    parser.add_argument("--factor", type=float, action="append", help="may be given again; default: 1.5 and 3")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="may be given again; default: both")
    parser.add_argument("--input", choices=INPUTS, action="append", help="may be given again; default: both")
    parser.add_argument("--max-queue", type=int, default=512)
    arguments = parser.parse_args()
    factors = arguments.factor or (1.5, 3.0)
    results: list[dict[str, Any]] = []
    print(f"{'':28}{'offered':>9}{'goodput':>9}{'':>7}{'answer':>9}{'refusal':>9}{'health':>9} p99 ms")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for which in arguments.network or NETWORKS:
            make_network(folder / which, NETWORKS[which])
            options = (*list_server_options(arguments), "--max-queue", arguments.max_queue)
            for kind in arguments.input or INPUTS:
                request = folder / f"{which}-{kind}"
                request.write_bytes(make_request(kind, NETWORKS[which].side))
                with serving(folder / which, *options) as server:
                    for one in measure(server, request, factors, arguments.seconds):
                        results.append({"network": which, "input": kind, **one})
                        show(results[-1])
                        write_result(arguments, {"overloads": results})
    sys.exit(1 if any(one["misses"] for one in results) else 0)


def make_network(repository: Path, network: Network) -> None:
    """Certify and publish a network."""
    from training.networks.compact import Compact

    torch.manual_seed(0)
    contract = PixelContract(network.side, network.side, 3)
    graph = export_untrained(Compact(3, network.side, network.side, 10, network.width), contract)
    publish(repository, "network", certify_untrained(graph, contract, tuple(map(str, range(10)))))


def make_request(kind: str, side: int) -> bytes:
    """Make a serialized PredictRequest.

    Args:
        kind: A key of ``INPUTS``.
        side: Side of the image in pixels.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    if kind == "raw":
        raw = classifier_pb2.Pixels(data=pixels.tobytes(), height=side, width=side, channels=3)
        return classifier_pb2.PredictRequest(pixels=raw).SerializeToString()
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=90)
    return classifier_pb2.PredictRequest(image=written.getvalue()).SerializeToString()


def measure(server: Server, request: Path, factors: tuple[float, ...], seconds: float) -> list[dict[str, Any]]:
    """Measure the capacity, then each overload.

    Args:
        server: A running server.
        request: A file with a PredictRequest.
        factors: Rates relative to the capacity.
        seconds: Duration of each overload.
    """
    Generating(server.address, request, "--callers", CALLERS, "--seconds", WARM_S, "--deadline", 30).figures()
    closed = ("--callers", CALLERS, "--seconds", CAPACITY_S, "--deadline", 30)
    capacity = Generating(server.address, request, *closed).figures()["answers_per_s"]
    alone = ask_alone(server, request)
    short_s = min(LONGEST_S, max(SHORTEST_S, IMPATIENCE * alone["answer_ms_p50"] / 1e3))
    results = []
    for factor, deadline_s in product(factors, (PATIENCE_S, short_s)):
        figures = overload(server, request, factor * capacity, seconds, deadline_s)
        time.sleep(SETTLE_S)
        recovered = ask_alone(server, request)
        one = {
            "factor": factor,
            "deadline_s": round(deadline_s, 3),
            "capacity_per_s": capacity,
            "alone_ms": alone["answer_ms_p50"],
            "recovered_ms": recovered["answer_ms_p50"],
            "goodput_of_capacity": round(figures["answers_per_s"] / capacity, 3),
            "offered_of_wanted": round(figures["begun_per_s"] / factor / capacity, 3),
            **figures,
        }
        results.append({**one, "misses": judge(one)})
    return results


def ask_alone(server: Server, request: Path) -> dict[str, Any]:
    """Measure one caller on an idle server.

    Args:
        server: A running server.
        request: A file with a PredictRequest.
    """
    return Generating(server.address, request, "--callers", 1, "--seconds", ALONE_S, "--deadline", 5).figures()


def overload(server: Server, request: Path, rate: float, seconds: float, deadline_s: float) -> dict[str, Any]:
    """Send requests at a rate, regardless of the replies.

    Args:
        server: A running server.
        request: A file with a PredictRequest.
        rate: Calls per second.
        seconds: Duration.
        deadline_s: Deadline of each call.
    """
    health = Asking(server.address, seconds, 0)
    options = ("--rate", rate, "--seconds", seconds, "--deadline", deadline_s)
    figures = Generating(server.address, request, *options).figures()
    return {**figures, "health": health.figures()["check"]}


def judge(figures: dict[str, Any]) -> list[str]:
    """List the requirements that were not met. The generator's own lateness is first, since it invalidates the rest."""
    outcomes = figures["outcomes"]
    refused = outcomes.get("RESOURCE_EXHAUSTED", 0)
    others = {name: count for name, count in outcomes.items() if name not in ("OK", "RESOURCE_EXHAUSTED", *LATE)}
    health = figures["health"]
    wanted = {
        f"the generator kept up: {figures['offered_of_wanted']} of the rate, {figures['late_ms_p99']} ms late": (
            figures["offered_of_wanted"] >= OFFERED and figures["late_ms_p99"] < LATE_MS
        ),
        f"goodput at least {GOODPUT} of capacity": figures["goodput_of_capacity"] >= GOODPUT,
        f"refusals RESOURCE_EXHAUSTED alone, not {others}": not others,
        "each refusal with RetryInfo": figures["refusals_with_details"] == refused,
        f"health under {HEALTH_MS} ms p99, always there": health["p99_ms"] < HEALTH_MS and not health["failed"],
        "every call ended": not figures["without_end"],
        f"recovered: {figures['recovered_ms']} ms, before {figures['alone_ms']} ms": (
            figures["recovered_ms"] is not None and figures["recovered_ms"] < 2 * figures["alone_ms"] + 1
        ),
    }
    return [what for what, kept in wanted.items() if not kept]


def show(one: dict[str, Any]) -> None:
    """Print one line, and one for each requirement that was not met."""
    name = f"{one['network']} {one['input']} x{one['factor']} {one['deadline_s']} s"
    share = f"{one['goodput_of_capacity']:.0%}"
    times = "".join(
        f"{ms:9.1f}" if ms is not None else f"{'-':>9}"
        for ms in (one["answer_ms_p99"], one["refusal_ms_p99"], one["health"]["p99_ms"])
    )
    print(f"{name:28}{one['begun_per_s']:9.0f}{one['answers_per_s']:9.0f}{share:>7}{times}", flush=True)
    for miss in one["misses"]:
        print(f"    failed: {miss}", flush=True)


if __name__ == "__main__":
    main()
