"""What a server does that is asked for three times what it can; an open loop, so nobody waits for an answer to ask.

    python benchmarks/overload.py --out benchmarks/results/DATE-overload.json [--seconds 60] [--factor 3]

Starts `evalmode serve` with a network of its own making, heavy enough that the load generator beside it does not decide
the figures; measures its capacity with four callers a core, then asks at `factor` times that rate, looking at the
health twenty times a second. First with deadlines that the queue can keep, and that is what is judged: exit 1 where a
figure is not what it should be. Then, for a quarter of the time, with deadlines that pass while requests wait or run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lecture import processor  # beside this file

from serving.artifact import Manifest
from serving.certificate import INPUT
from serving.pixels import PixelContract
from serving.proof.certify import certify, draw_golden, strip
from serving.repository import publish
from serving.wire import classifier_pb2, classifier_pb2_grpc
from serving.wire import open_inference_pb2 as wire
from serving.wire import open_inference_pb2_grpc as wire_grpc

NAME, SIDE = "heavy", 64
WARM_UP_S, CAPACITY_S, PAUSE_S = 3.0, 10.0, 1.0
PATIENCE_S = 10.0  # longer than any queue that is bounded
HEALTH_EVERY_S = 0.05


@dataclass
class Asked:
    """The server's calls, and the request that is always the same."""

    predict: Any
    request: Any
    check: Any
    count: Any


def main() -> None:
    """Measure, print, keep, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--factor", type=float, default=3)
    parser.add_argument("--width", type=float, default=16, help="of the network: decides how heavy it is")
    parser.add_argument("--max-queue", type=int, default=32)
    arguments = parser.parse_args()
    gc.disable()  # else the generator measures its own pauses
    with tempfile.TemporaryDirectory() as folder:
        make_network(Path(folder), arguments.width)
        with serving(Path(folder), arguments.max_queue) as address:
            figures = asyncio.run(measure(address, arguments))
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        **{name: value for name, value in vars(arguments).items() if name != "out"},
        **figures,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name:28} {value}")
    missed = judge(figures)
    for what in missed:
        print(f"not so: {what}", file=sys.stderr)
    sys.exit(1 if missed else 0)


def make_network(repository: Path, width: float) -> None:
    """A wide network, not trained: what it answers does not matter here, only that refusing costs far less."""
    from training.export import Deployed, export_graph
    from training.networks.compact import Compact

    torch.manual_seed(0)
    graph, _ = export_graph(Deployed(Compact(3, SIDE, SIDE, 10, width).eval()), (SIDE, SIDE, 3))
    contract = PixelContract(SIDE, SIDE, 3)
    manifest = Manifest(tuple(map(str, range(10))), contract)
    artifact = certify(strip(graph), manifest, {INPUT: draw_golden(contract, 10)}, ("",) * 16, difference=0.0)
    publish(repository, NAME, artifact)


@contextmanager
def serving(repository: Path, max_queue: int) -> Iterator[str]:
    """The server as a process of its own."""
    command = [sys.executable, "-m", "serving", "serve", "--repository", repository, "--port", "0", "--lame-duck", "0"]
    options = ["--max-queue", str(max_queue), "--metrics-port", "0"]
    with subprocess.Popen([*map(str, command), *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield "127.0.0.1:" + process.stdout.readline().split()[-1]
        finally:
            process.terminate()


async def measure(address: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Capacity; overload by callers who wait long enough; whether it has recovered; overload by callers who do not."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    raw = classifier_pb2.Pixels(data=pixels.tobytes(), height=SIDE, width=SIDE, channels=3)
    async with grpc.aio.insecure_channel(address) as channel, grpc.aio.insecure_channel(address) as other:
        server = Asked(
            predict=classifier_pb2_grpc.ClassifierStub(channel).Predict,
            request=classifier_pb2.PredictRequest(pixels=raw),
            check=health_pb2_grpc.HealthStub(other).Check,
            count=wire_grpc.GRPCInferenceServiceStub(other).ModelStatistics,
        )
        await ask_in_turns(server, WARM_UP_S)
        capacity = await ask_in_turns(server, CAPACITY_S)
        idle = await ask_one_by_one(server)
        patient = await overload(server, arguments.factor * capacity, arguments.seconds, PATIENCE_S)
        recovered = await ask_one_by_one(server)
        # Half of what a full queue takes: most requests would be answered too late.
        deadline_s = arguments.max_queue / capacity / 2
        impatient = await overload(server, arguments.factor * capacity, arguments.seconds / 4, deadline_s)
    return {
        "capacity_per_s": round(capacity, 1),
        **patient,
        "goodput_of_capacity": round(patient["goodput_per_s"] / capacity, 3),
        "recovered_codes": dict(Counter(code for code, _ in recovered)),
        "idle_ms_median": percentile([latency for _, latency in idle], 50),
        "recovered_ms_median": percentile([latency for _, latency in recovered], 50),
        "impatient": {"deadline_s": round(deadline_s, 3), **impatient},
    }


def judge(figures: dict[str, Any]) -> list[str]:
    """What is not as it should be; the generator's own lateness first, since it makes the rest meaningless."""
    wanted = {
        "the generator kept up": figures["offered_of_wanted"] >= 0.98,
        "goodput at least 95% of capacity": figures["goodput_of_capacity"] >= 0.95,
        "nothing executed in vain": figures["executed_but_not_answered"] == 0,
        "refusals under 5 ms p99": (figures["refusal_ms_p99"] or 0) < 5,
        "health under 20 ms p99, always there": figures["health_ms_p99"] < 20
        and set(figures["health_codes"]) == {"OK"},
        "recovered after 1 s": set(figures["recovered_codes"]) == {"OK"}
        and figures["recovered_ms_median"] < 2 * figures["idle_ms_median"],
        "deadlines that pass while waiting end the wait": figures["impatient"]["expired_before_the_run"] > 0,
    }
    return [what for what, kept in wanted.items() if not kept]


async def ask_in_turns(server: Asked, seconds: float) -> float:
    """Answers a second, with four callers a core, each of which waits for its answer."""
    started, answered = time.perf_counter(), 0

    async def caller() -> None:
        nonlocal answered
        while time.perf_counter() < started + seconds:
            await server.predict(server.request, timeout=30)
            answered += 1

    await asyncio.gather(*(caller() for _ in range(4 * (os.cpu_count() or 1))))
    return answered / (time.perf_counter() - started)


async def ask_one_by_one(server: Asked) -> list[tuple[str, float]]:
    """What comes of twenty requests that find the server idle."""
    return [await time_call(server.predict, server.request, PATIENCE_S) for _ in range(20)]


async def overload(server: Asked, rate: float, seconds: float, deadline_s: float) -> dict[str, Any]:
    """Ask at a fixed rate, whatever comes back."""
    before = await count_requests(server)
    watching = asyncio.create_task(watch_health(server, seconds))
    started, asked = time.perf_counter(), []
    answered_s = 0.0

    async def ask() -> tuple[str, float]:
        nonlocal answered_s
        code, latency_ms = await time_call(server.predict, server.request, deadline_s)
        answered_s = time.perf_counter() - started if code == "OK" else answered_s
        return code, latency_ms

    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        asked.append(asyncio.create_task(ask()))
    asked_s = time.perf_counter() - started
    outcomes, health = await asyncio.gather(*asked), await watching
    await asyncio.sleep(PAUSE_S)  # what was given up in mid-run is counted when its run ends
    executed, refused = (now - then for now, then in zip(await count_requests(server), before, strict=True))
    codes = Counter(code for code, _ in outcomes)
    return {
        "offered_per_s": round(len(asked) / asked_s, 1),
        "offered_of_wanted": round(len(asked) / asked_s / rate, 3),
        "goodput_per_s": round(codes["OK"] / max(answered_s, seconds), 1),
        "outcomes": dict(codes),
        "executed_but_not_answered": executed - codes["OK"],
        "expired_before_the_run": refused - codes["RESOURCE_EXHAUSTED"],
        "refusal_ms_p99": percentile([latency for code, latency in outcomes if code == "RESOURCE_EXHAUSTED"], 99),
        "health_ms_p99": percentile([latency for _, latency in health], 99),
        "health_codes": dict(Counter(code for code, _ in health)),
    }


async def watch_health(server: Asked, seconds: float) -> list[tuple[str, float]]:
    """Look at the health again and again."""
    until, seen = time.perf_counter() + seconds, []
    while time.perf_counter() < until:
        seen.append(await time_call(server.check, health_pb2.HealthCheckRequest(), 5))
        await asyncio.sleep(HEALTH_EVERY_S)
    return seen


async def time_call(method: Any, request: Any, timeout_s: float) -> tuple[str, float]:
    """The status of a call, and its milliseconds."""
    started = time.perf_counter()
    try:
        await method(request, timeout=timeout_s)
        code = "OK"
    except grpc.RpcError as error:
        code = error.code().name
    return code, (time.perf_counter() - started) * 1e3


async def count_requests(server: Asked) -> tuple[int, int]:
    """How many requests the network has answered, and how many ended without it."""
    told = await server.count(wire.ModelStatisticsRequest(name=NAME))
    spent = told.model_stats[0].inference_stats
    return int(spent.success.count), int(spent.fail.count)


def percentile(values: list[float], share: int) -> float | None:
    """Milliseconds, to a hundredth."""
    return round(statistics.quantiles(values, n=100)[share - 1], 2) if len(values) > 1 else None


if __name__ == "__main__":
    main()
