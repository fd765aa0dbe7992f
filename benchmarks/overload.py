"""What a server does that is asked for three times what it can; an open loop, so nobody waits for an answer to ask.

    python benchmarks/overload.py --out benchmarks/results/DATE-overload.json [--seconds 60] [--factor 3]

Starts `evalmode serve` with a network of its own making, heavy enough that the load generator beside it does not decide
the figures; measures its capacity with as many callers as fill the slots, then asks at `factor` times that rate, each
request with a deadline, looking at the health twenty times a second.
"""

from __future__ import annotations

import argparse
import asyncio
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

NAME = "heavy"
WARM_UP_S, CAPACITY_S = 3.0, 10.0
HEALTH_EVERY_S = 0.05


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--factor", type=float, default=3)
    parser.add_argument("--side", type=int, default=160, help="of the images: decides how heavy the network is")
    parser.add_argument("--deadline-s", type=float, default=2)
    parser.add_argument("--max-queue", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_network(Path(folder), arguments.side)
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


def make_network(repository: Path, side: int) -> None:
    """The lecture's network for large images, not trained: what it answers does not matter here."""
    from training.export import Deployed, export_graph
    from training.networks.reference import Reference

    torch.manual_seed(0)
    graph, _ = export_graph(Deployed(Reference(3, side, side, 10).eval()), (side, side, 3))
    contract = PixelContract(side, side, 3)
    manifest = Manifest(tuple(map(str, range(10))), contract)
    artifact = certify(strip(graph), manifest, {INPUT: draw_golden(contract, 10)}, ("",) * 16, difference=0.0)
    publish(repository, NAME, artifact)


@contextmanager
def serving(repository: Path, max_queue: int) -> Iterator[str]:
    """The server as a process of its own."""
    command = [sys.executable, "-m", "serving", "serve", "--repository", repository, "--port", "0", "--lame-duck", "0"]
    options = ["--max-queue", str(max_queue)]
    with subprocess.Popen([*map(str, command), *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield "127.0.0.1:" + process.stdout.readline().split()[-1]
        process.terminate()


async def measure(address: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Capacity, then overload, then whether it has recovered a second later."""
    pixels = np.random.default_rng(0).integers(0, 256, (arguments.side, arguments.side, 3), np.uint8)
    raw = classifier_pb2.Pixels(data=pixels.tobytes(), height=arguments.side, width=arguments.side, channels=3)
    request = classifier_pb2.PredictRequest(pixels=raw)
    async with grpc.aio.insecure_channel(address) as channel, grpc.aio.insecure_channel(address) as other:
        predict = classifier_pb2_grpc.ClassifierStub(channel).Predict
        check = health_pb2_grpc.HealthStub(other).Check
        count = wire_grpc.GRPCInferenceServiceStub(other).ModelStatistics
        await ask_in_turns(predict, request, WARM_UP_S)
        capacity = await ask_in_turns(predict, request, CAPACITY_S)
        before = await count_answers(count)
        outcomes, health = await overload(predict, check, request, arguments.factor * capacity, arguments)
        executed = await count_answers(count) - before
        await asyncio.sleep(1)
        recovered = [await time_call(predict, request, arguments.deadline_s) for _ in range(20)]
    codes = Counter(code for code, _ in outcomes)
    refused = [latency for code, latency in outcomes if code == "RESOURCE_EXHAUSTED"]
    goodput = codes["OK"] / arguments.seconds
    return {
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(len(outcomes) / arguments.seconds, 1),
        "goodput_per_s": round(goodput, 1),
        "goodput_of_capacity": round(goodput / capacity, 3),
        "outcomes": dict(codes),
        "executed_but_not_answered": executed - codes["OK"],
        "refusal_ms_p99": percentile(refused, 99),
        "health_ms_p99": percentile([latency for _, latency in health], 99),
        "health_codes": dict(Counter(code for code, _ in health)),
        "recovered_codes": dict(Counter(code for code, _ in recovered)),
        "recovered_ms_median": percentile([latency for _, latency in recovered], 50),
    }


async def ask_in_turns(predict: Any, request: Any, seconds: float) -> float:
    """Answers a second, with four callers a core, each of which waits for its answer."""
    until, answered = time.perf_counter() + seconds, 0

    async def caller() -> None:
        nonlocal answered
        while time.perf_counter() < until:
            await predict(request, timeout=30)
            answered += 1

    await asyncio.gather(*(caller() for _ in range(4 * (os.cpu_count() or 1))))
    return answered / seconds


async def overload(
    predict: Any, check: Any, request: Any, rate: float, arguments: argparse.Namespace
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Ask at a fixed rate, whatever comes back; what came of each request and of each look at the health."""
    started, asked = time.perf_counter(), []
    watching = asyncio.create_task(watch_health(check, arguments.seconds))
    for number in range(round(rate * arguments.seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        asked.append(asyncio.create_task(time_call(predict, request, arguments.deadline_s)))
    return await asyncio.gather(*asked), await watching


async def watch_health(check: Any, seconds: float) -> list[tuple[str, float]]:
    """Look at the health again and again."""
    until, seen = time.perf_counter() + seconds, []
    while time.perf_counter() < until:
        seen.append(await time_call(check, health_pb2.HealthCheckRequest(), 5))
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


async def count_answers(count: Any) -> int:
    """How many images the network has answered."""
    told = await count(wire.ModelStatisticsRequest(name=NAME))
    return int(told.model_stats[0].inference_count)


def percentile(values: list[float], share: int) -> float | None:
    """Milliseconds, to a hundredth."""
    return round(statistics.quantiles(values, n=100)[share - 1], 2) if len(values) > 1 else None


if __name__ == "__main__":
    main()
