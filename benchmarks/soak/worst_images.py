"""The most expensive images within the limits: the cost of decoding each, and the effect on a server.

    python -m benchmarks.soak.worst_images                                      # seconds, peak memory and lock time
    python -m benchmarks.soak.worst_images --server 127.0.0.1:8001 --pid PID    # other callers while 32 send it

Each is within the limits of 10 MiB encoded and 50 million pixels, and as expensive as possible within them.
Exit 1 if a figure exceeds its bound.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.decoded_apart import measure_apart
from benchmarks.images import WORST, flat, noise, save
from benchmarks.record import add_out, write_result
from benchmarks.worker_processes import find_workers
from evalmode.errors import ImageError
from evalmode.images.headers import read_header
from evalmode.images.pixels import PixelContract, decode_image
from evalmode.limits import Limits
from evalmode.wire import classifier_pb2, classifier_pb2_grpc
from serving.engine.decoding import count_decode_bytes
from serving.engine.memory import return_large_blocks

MAX_LOCK_S, MAX_HEALTH_S = 0.05, 0.1
DEADLINE_S, HEALTH_EVERY_S = 5.0, 0.05
REPEATS = 3


def main() -> None:
    """Measure each by itself, or its effect on a server; exit 1 if a figure exceeds its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", metavar="ADDRESS", help="send them to this server")
    parser.add_argument("--pid", type=int, help="of the server, whose memory is read")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of them")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--budget", type=int, default=2**31, help="the server's --max-decode-bytes")
    parser.add_argument("--only", default="", help="those whose name has this in it")
    add_out(parser, required=False)
    options = parser.parse_args()
    if options.server and not options.pid:
        parser.error("--server needs --pid, the process of the server")
    return_large_blocks()
    chosen = {name: make(1.0) for name, make in WORST.items() if options.only in name}
    processes = [options.pid, *find_workers(options.pid)] if options.pid else []
    idle_bytes = sum(map(read_resident, processes))
    figures: dict[str, dict[str, Any]] = {}
    for name, image in chosen.items():
        figures[name] = judge(name, image, options, idle_bytes) if options.server else show(name, image)
        write_result(options, {"images": figures})
    sys.exit(not all(one["good"] for one in figures.values()))


def show(name: str, image: bytes) -> dict[str, Any]:
    """Decode one by itself; print, judge and return its cost."""
    small, limits, contract = save(flat("RGB", 64), "PNG"), Limits(), PixelContract(224, 224, 3)
    try:
        cost_bytes = count_decode_bytes(read_header(image, limits), contract)
    except ImageError:
        cost_bytes = 2**20  # refused because of its header
    runs = [
        measure_apart(lambda: decode_image(image, contract, limits), lambda: decode_image(small, contract, limits))
        for _ in range(REPEATS)
    ]
    taken = max(runs, key=lambda run: run.peak_bytes)
    lock_s = min(run.lock_s for run in runs)  # a busy machine does not delay every run
    good = taken.peak_bytes <= cost_bytes and lock_s < MAX_LOCK_S
    print(
        f"{name:42} {len(image):9} bytes {taken.seconds:6.2f} s {taken.peak_bytes / 1e6:7.1f} MB of"
        f" {cost_bytes / 1e6:7.1f} counted, lock {lock_s * 1e3:3.0f} ms {taken.answer}"
        f"{'' if good else '  NOT GOOD'}",
        flush=True,
    )
    figures = {"bytes": len(image), "seconds": taken.seconds, "peak_bytes": taken.peak_bytes, "answer": taken.answer}
    return {**figures, "counted_bytes": cost_bytes, "lock_s": lock_s, "good": good}


def judge(name: str, image: bytes, options: argparse.Namespace, idle_bytes: int) -> dict[str, Any]:
    """Send an image to a server from many callers, while others call; print, judge and return what the others measure.

    Args:
        name: Name of the image.
        image: The image.
        options: The command-line arguments.
        idle_bytes: Memory of the server before the first image.
    """
    callers = [
        multiprocessing.get_context("spawn").Process(
            target=flood, args=(options.server, image, options.callers // 2, options.seconds)
        )
        for _ in range(2)
    ]
    honest = save(noise(500), "JPEG")
    for caller in callers:
        caller.start()
    time.sleep(2.0)  # they import their modules
    until = time.monotonic() + options.seconds
    with ThreadPoolExecutor(4) as threads:
        peak = threads.submit(watch_memory, options.pid, until)
        checks = threads.submit(check_health, options.server, until)
        asks = [threads.submit(ask, options.server, honest, until) for _ in range(2)]
    for caller in callers:
        caller.join()
    answered = [answer for future in asks for answer in future.result()]
    failed = [code for code, _ in answered if code != "OK"]
    waits, times = checks.result(), [seconds for _, seconds in answered]
    health_p99, honest_p99 = (float(np.quantile(each, 0.99)) if each else np.inf for each in (waits, times))
    over = peak.result() - idle_bytes
    good = over <= options.budget + 40 * 2**20 and health_p99 < MAX_HEALTH_S and not failed
    print(
        f"{name:42} memory {idle_bytes / 1e6:5.0f} + {over / 1e6:6.1f} MB, health p99 {health_p99 * 1e3:5.1f} ms,"
        f" honest {len(answered)} answered, p99 {honest_p99 * 1e3:5.0f} ms, {len(failed)} failed"
        f" {Counter(failed) or ''}{'' if good else '  NOT GOOD'}",
        flush=True,
    )
    figures = {"bytes_above_idle": over, "health_p99_s": health_p99, "honest_p99_s": honest_p99}
    return {**figures, "honest_answers": len(answered), "failed": Counter(failed), "good": good}


def flood(address: str, image: bytes, callers: int, seconds: float) -> None:
    """Send an image repeatedly from many callers, in a process of its own."""
    with ThreadPoolExecutor(callers) as threads:
        answers = [threads.submit(ask, address, image, time.monotonic() + seconds + 2.0) for _ in range(callers)]
    codes = Counter(code for future in answers for code, _ in future.result())
    if "INTERNAL" in codes or "UNKNOWN" in codes:
        print(f"  NOT GOOD: {codes}", flush=True)


def ask(address: str, image: bytes, until: float) -> list[tuple[str, float]]:
    """Request predictions repeatedly. Return how each call ended, and how long it took."""
    ended = []
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        predict = classifier_pb2_grpc.ClassifierStub(channel).Predict  # type: ignore[no-untyped-call]
        while time.monotonic() < until:
            started = time.perf_counter()
            try:
                predict(classifier_pb2.PredictRequest(image=image), timeout=DEADLINE_S)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
            ended.append((code, time.perf_counter() - started))
    return ended


def check_health(address: str, until: float) -> list[float]:
    """Check the server's health 20 times per second. Return how long each call took."""
    waits = []
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while time.monotonic() < until:
            started = time.perf_counter()
            try:
                check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
                waits.append(time.perf_counter() - started)
            except grpc.RpcError:
                waits.append(DEADLINE_S)
            time.sleep(HEALTH_EVERY_S)
    return waits


def watch_memory(pid: int, until: float) -> int:
    """Return the peak of the resident memory of a server, in bytes."""
    peak, processes = 0, [pid, *find_workers(pid)]
    while time.monotonic() < until:
        peak = max(peak, sum(map(read_resident, processes)))
        time.sleep(0.005)
    return peak


def read_resident(pid: int) -> int:
    """Read the resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
