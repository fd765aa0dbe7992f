"""Kill the workers of a loaded server repeatedly: only requests in flight fail, with UNAVAILABLE.

    python -m benchmarks.soak.workers --out FILE [--transport native] [--kills 50]

16 callers in a closed loop over 8 connections, without retries. SIGKILL ends one worker after the other. Exit 1 if a
call ended with anything but OK or UNAVAILABLE, if a kill failed more than two calls per caller (one in flight, and one
that was sent before the client noticed), or if the server was ready again only after more than 2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.honest import make_request
from benchmarks.http2 import PREDICT
from benchmarks.record import add_out, write_result
from benchmarks.servers import Server, make_artifact, serving
from benchmarks.worker_processes import find_workers
from evalmode.artifact.publishing import publish

CALLERS, CHANNELS = 16, 8
MAX_FAILED = 2 * CALLERS  # after a kill
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
SETTLE_S = 1.5  # between two kills; a worker that lives for less than 1 s is started again after a delay
POLL_S = 0.005
BACK_S = 2.0
LONGEST_S = 60.0


def main() -> None:
    """Run the kills, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--transport", choices=("grpcio", "native"), default="grpcio")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    options = ("--transport", arguments.transport, "--workers", arguments.workers)
    with tempfile.TemporaryDirectory() as name:
        publish(Path(name), "network", make_artifact(tuple(map(str, range(10)))))
        with tempfile.TemporaryFile("w+") as log, serving(Path(name), *options, log=log) as server:
            figures = asyncio.run(kill_repeatedly(server, arguments.kills))
    write_result(arguments, figures)
    print({name: value for name, value in figures.items() if name != "kills"})
    sys.exit(1 if figures["misses"] else 0)


async def kill_repeatedly(server: Server, kills: int) -> dict[str, Any]:
    """Kill workers in turns while callers send requests.

    Args:
        server: The server.
        kills: The number of kills.
    """
    codes: Counter[str] = Counter()
    stop = asyncio.Event()
    request = make_request()

    async def call(channel: grpc.aio.Channel) -> None:
        predict = channel.unary_unary(PREDICT)
        while not stop.is_set():
            try:
                await predict(request, timeout=10)
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1

    channels = [grpc.aio.insecure_channel(server.address, options=OPTIONS) for _ in range(CHANNELS)]
    callers = [asyncio.create_task(call(channels[number % CHANNELS])) for number in range(CALLERS)]
    results: list[dict[str, Any]] = []
    misses: set[str] = set()
    for number in range(kills):
        await asyncio.sleep(SETTLE_S)
        workers = await asyncio.to_thread(find_workers, server.process.pid)
        before = codes.copy()
        os.kill(workers[number % len(workers)], signal.SIGKILL)
        back_s = await asyncio.to_thread(wait_until_back, server.metrics)
        failed = {code: count for code, count in (codes - before).items() if code != "OK"}
        results.append({"back_s": round(back_s, 3), "failed": failed, "answered": codes["OK"] - before["OK"]})
        misses |= {f"ended with {code}" for code in failed.keys() - {"UNAVAILABLE"}}
        misses |= {f"more than {MAX_FAILED} calls failed after a kill"} if sum(failed.values()) > MAX_FAILED else set()
        misses |= {f"not ready within {BACK_S} s"} if back_s > BACK_S else set()
        print(f"{number + 1:3} {results[-1]}", flush=True)
    stop.set()
    await asyncio.gather(*callers)
    back = [one["back_s"] for one in results]
    return {
        "codes": dict(codes),
        "back_s": {"median": statistics.median(back), "max": max(back)},
        "failed_per_kill": {"max": max(sum(one["failed"].values()) for one in results), "callers": CALLERS},
        "misses": sorted(misses),
        "kills": results,
    }


def wait_until_back(metrics: str) -> float:
    """Wait until a server has lost a worker and is ready again; return the seconds since the call.

    Args:
        metrics: The address of /healthz.
    """
    started, lost = time.monotonic(), False
    while time.monotonic() < started + LONGEST_S:
        try:
            with urllib.request.urlopen(f"http://{metrics}/healthz", timeout=LONGEST_S):
                if lost:
                    break
        except urllib.error.HTTPError as error:
            error.close()
            lost = True
        time.sleep(POLL_S)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
