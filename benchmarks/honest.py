"""Honest callers in a process of their own, which must be served while other clients attack.

    python -m benchmarks.honest ADDRESS --seconds 10

Calls at constant rates, regardless of the replies: Predict with raw pixels, Health.Check, and Health.Check from a new
connection each time. Latency is measured from the time when a call was due. Prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import psutil
from grpc_health.v1 import health_pb2

from benchmarks import http2
from benchmarks.processes import list_command, make_environment
from evalmode.wire import classifier_pb2, open_inference_pb2

SIDE = 32
PREDICTS_PER_S, CHECKS_PER_S, CONNECTS_PER_S = 50.0, 20.0, 2.0
DEADLINE_S = 5.0
ALONE = (("grpc.use_local_subchannel_pool", 1),)  # of a channel: a connection that no other channel uses
SAMPLE_S = 0.05
LARGEST_GROWTH_MB = 400.0
SLOWER, SLOWER_MS = 2.0, 20.0  # the p99 may be this many times the quiet one, plus this time
KILL_MB = 6000.0  # a server that grows by this much is killed, before the machine runs out of memory


def make_request() -> bytes:
    """Make a serialized PredictRequest of raw pixels."""
    drawn = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    pixels = classifier_pb2.Pixels(data=drawn.tobytes(), height=SIDE, width=SIDE, channels=3)
    return classifier_pb2.PredictRequest(pixels=pixels).SerializeToString()


def make_infer_request() -> bytes:
    """Make a serialized ModelInferRequest of raw pixels."""
    pixels = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    inputs = [{"name": "image", "datatype": "UINT8", "shape": pixels.shape}]
    return open_inference_pb2.ModelInferRequest(
        model_name="network", inputs=inputs, raw_input_contents=[pixels.tobytes()]
    ).SerializeToString()


def main() -> None:
    """Call and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=PREDICTS_PER_S)
    arguments = parser.parse_args()
    gc.disable()  # otherwise its pauses count as the server's
    print(json.dumps(asyncio.run(ask(arguments.address, arguments.seconds, arguments.rate))))


async def ask(address: str, seconds: float, rate: float) -> dict[str, Any]:
    """Call every method at its rate.

    Args:
        address: HOST:PORT.
        seconds: Time during which calls are begun.
        rate: Predict calls per second; 0 for none.

    Returns:
        The figures of each kind of call.
    """
    request, empty = make_request(), health_pb2.HealthCheckRequest().SerializeToString()
    async with (
        grpc.aio.insecure_channel(address, options=ALONE) as predicting,
        grpc.aio.insecure_channel(address, options=ALONE) as checking,
    ):
        predict, check = predicting.unary_unary(http2.PREDICT), checking.unary_unary(http2.CHECK)

        async def connect(_: bytes, timeout: float) -> None:
            async with grpc.aio.insecure_channel(address, options=ALONE) as channel:
                await channel.unary_unary(http2.CHECK)(empty, timeout=timeout)

        loops = {
            "predict": (predict, request, rate),
            "check": (check, empty, CHECKS_PER_S),
            "connect": (connect, empty, CONNECTS_PER_S),
        }
        asked = {name: ask_at_rate(*loop, seconds) for name, loop in loops.items() if loop[2]}
        return dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))


async def ask_at_rate(method: Any, request: bytes, rate: float, seconds: float) -> dict[str, Any]:
    """Call a method in an open loop. Latency is measured from the time when a call was due.

    Args:
        method: Takes the request and ``timeout``.
        request: The request of every call.
        rate: Calls per second.
        seconds: Time during which calls are begun.

    Returns:
        Counts, statuses and latencies in milliseconds.
    """
    codes: Counter[str] = Counter()
    latencies_ms: list[float] = []

    async def one(due: float) -> None:
        try:
            await method(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            codes[error.code().name] += 1
        else:
            codes["OK"] += 1
        latencies_ms.append((time.perf_counter() - due) * 1e3)

    started, asked = time.perf_counter(), []
    for number in range(round(rate * seconds)):
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(one(due)))
    await asyncio.gather(*asked)
    p50, p99 = (round(float(np.percentile(latencies_ms, share)), 2) for share in (50, 99))
    return {"calls": len(asked), "failed": len(asked) - codes["OK"], "codes": dict(codes), "p50_ms": p50, "p99_ms": p99}


class Asking:
    """A process with honest callers.

    Args:
        address: HOST:PORT.
        seconds: Time during which they call.
        rate: Predict calls per second.
    """

    def __init__(self, address: str, seconds: float, rate: float = PREDICTS_PER_S) -> None:
        command = list_command("benchmarks.honest", address, "--seconds", seconds, "--rate", rate)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=make_environment())

    def figures(self) -> dict[str, Any]:
        """Wait until the process has finished and return its figures."""
        record, _ = self._process.communicate()
        return dict(json.loads(record))


class Memory:
    """Samples the resident memory of a server and its children, and kills the server if it grows without bound.

    Args:
        process: The server's process id.
    """

    def __init__(self, process: int) -> None:
        self._server = psutil.Process(process)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.idle_mb = self.most_mb = self.now_mb()
        self.killed = False
        self._thread.start()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def now_mb(self) -> float:
        """Resident memory in megabytes; 0 once the server has stopped. What processes share counts for each."""
        total = 0
        with suppress(psutil.NoSuchProcess):  # the server has stopped
            for one in (self._server, *self._server.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # a child has ended since
                    total += one.memory_info().rss
        return round(total / 1e6, 1)

    def start_again(self) -> None:
        """Use the current memory as the idle value."""
        self.idle_mb = self.most_mb = self.now_mb()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.most_mb = max(self.most_mb, self.now_mb())
            if self.most_mb > self.idle_mb + KILL_MB and not self.killed:
                self.killed = True
                self._server.kill()


def find_misses(quiet: dict[str, Any], attacked: dict[str, Any], idle_mb: float, most_mb: float) -> list[str]:
    """List the requirements that an attacked server did not meet.

    Args:
        quiet: Figures of honest callers without the attack.
        attacked: Figures of honest callers during the attack.
        idle_mb: Resident memory without the attack, in megabytes.
        most_mb: Peak of the resident memory during the attack, in megabytes.
    """
    misses = []
    for kind, figures in attacked.items():
        if figures["failed"]:
            misses.append(f"{figures['failed']} of {figures['calls']} {kind} calls failed: {figures['codes']}")
        bound = SLOWER * quiet[kind]["p99_ms"] + SLOWER_MS
        if figures["p99_ms"] > bound:
            misses.append(f"{kind} p99 {figures['p99_ms']} ms, above {bound:.1f} ms")
    if most_mb - idle_mb > LARGEST_GROWTH_MB:
        misses.append(f"memory {most_mb - idle_mb:.0f} MB over idle, above {LARGEST_GROWTH_MB:.0f} MB")
    return misses


if __name__ == "__main__":
    main()
