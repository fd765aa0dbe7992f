"""Send hundreds of thousands of requests of each kind: the server must not leak memory.

    python -m benchmarks.soak.leaks --out FILE [--transport native]

Each kind runs against a new server, with at most 64 requests in flight. Resident memory is sampled 28 times after the
first 20,000 requests (half of them if fewer than 40,000 are sent). Exit 1 if the line through these samples, fitted by
the median slope, grows by 1 MB or more per 100,000 requests; fewer than 100,000 may add 4 MB, which is noise. `--leak`
starts a server that leaks on purpose: then each kind that is answered must fail.

The kind `mixed` holds all others: 19 of 20 requests are fine, one is not. Every fine one must be answered, and memory
must end at most 50 MB above that of the idle server.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.honest import Memory, make_infer_request, make_request
from benchmarks.http2 import CHECK, INFER, PREDICT, STREAM_INFER, WATCH, Connection, encode_call, message
from benchmarks.record import add_out, write_result
from benchmarks.servers import add_server_options, list_server_options, make_artifact, serving
from evalmode.artifact.publishing import publish
from evalmode.wire import classifier_pb2

CONNECTIONS, IN_FLIGHT = 8, 8  # on each
WARM, SAMPLES = 20_000, 28
LARGEST_MB = 1.0  # per 100,000 requests
NOISE_MB = 4.0  # noise of resident memory: fewer than 100,000 requests may add this
MAX_REQUEST_BYTES = 16_384  # oversize messages must stay cheap to send
SETTLE_S = 0.3
STUCK_S = 30.0
LATE = ("grpc-timeout", "300u")
MIXED, EACH = "mixed", 20  # one of so many requests is not fine
MIXED_MB = 50.0  # above the idle server

Begin = Callable[[Connection], None]


def make_kinds() -> dict[str, Begin]:
    """Return a function for each kind that begins a request. Each ends by itself, or is cancelled by ``finish``."""
    drawn = np.random.default_rng(0)
    predict, infer, check, watch = map(encode_call, (PREDICT, INFER, CHECK, WATCH))
    fine, fine_infer = message(make_request()), message(make_infer_request())
    written = io.BytesIO()
    Image.fromarray(drawn.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(written, "JPEG")
    whole = written.getvalue()
    image = message(classifier_pb2.PredictRequest(image=whole).SerializeToString())
    broken = message(classifier_pb2.PredictRequest(image=whole[: len(whole) // 2]).SerializeToString())
    pixels = classifier_pb2.Pixels(data=bytes(300), height=10, width=10, channels=3)
    wrong = message(classifier_pb2.PredictRequest(pixels=pixels).SerializeToString())
    garbage = message(b"\xff" + drawn.bytes(200))

    def whole_call(block: bytes, data: bytes) -> Begin:
        return lambda one: void(one.call(block, data))

    def cancelled(block: bytes, data: bytes | None, end: bool = False) -> Begin:
        return lambda one: one.reset(one.call(block, data, end))

    return {
        "fine": whole_call(predict, fine),
        "fine-image": whole_call(predict, image),
        "fine-infer": whole_call(infer, fine_infer),
        "health": whole_call(check, message(b"")),
        "broken-image": whole_call(predict, broken),
        "wrong-shape": whole_call(predict, wrong),
        "malformed": whole_call(predict, garbage),
        "malformed-infer": whole_call(infer, garbage),
        "malformed-health": whole_call(check, garbage),
        "oversize": whole_call(predict, message(bytes(MAX_REQUEST_BYTES + 1000))),
        "late": whole_call(encode_call(PREDICT, LATE), fine),
        "unknown-method": whole_call(encode_call("/evalmode.v1.Classifier/Guess"), message(b"")),
        "unknown-service": whole_call(encode_call("/evalmode.v2.Guesser/Guess"), message(b"")),
        "stream": whole_call(encode_call(STREAM_INFER), fine_infer),
        "stream-malformed": whole_call(encode_call(STREAM_INFER), garbage),
        "cancelled-headers": cancelled(predict, None),
        "cancelled-half": cancelled(predict, fine[:700]),
        "cancelled-message": cancelled(predict, fine),
        "cancelled-whole": cancelled(predict, fine, end=True),
        "watch": cancelled(watch, message(b""), end=True),
        "watch-unknown": cancelled(watch, message(b"\n\x07unknown"), end=True),
    }


def mix(kinds: dict[str, Begin]) -> Begin:
    """Return a function that begins requests of all kinds: ``EACH`` - 1 fine ones after each other one."""
    fine = cycle([begin for name, begin in kinds.items() if name.startswith("fine")])
    names = [name for name in kinds if not name.startswith(("fine", "health")) and name != "stream"]
    others = cycle([kinds[name] for name in names])
    numbers = count()
    return lambda one: next(fine if next(numbers) % EACH else others)(one)


def void(_: object) -> None:
    """Discard a value."""


def main() -> None:
    """Run each kind, write and print the figures."""
    kinds = make_kinds()
    kinds[MIXED] = mix(kinds)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    add_server_options(parser)
    parser.add_argument("--requests", type=int, default=300_000, help="of each kind")
    parser.add_argument("--kind", choices=kinds, action="append", help="may be given again; default: all")
    parser.add_argument("--leak", action="store_true", help="of a server that leaks on purpose")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    print(f"{'kind':20}{'requests':>10}{'a second':>10}{'MB':>8}{'MB per 100,000':>16}")
    with tempfile.TemporaryDirectory() as name:
        publish(Path(name), "network", make_artifact(tuple(map(str, range(10)))))
        for kind in arguments.kind or kinds:
            results[kind] = spend(Path(name), kind, kinds[kind], arguments)
            show(kind, results[kind])
            write_result(arguments, {"kinds": results})
    sys.exit(1 if any(one["misses"] for one in results.values()) else 0)


def spend(repository: Path, kind: str, begin: Begin, arguments: argparse.Namespace) -> dict[str, Any]:
    """Send the requests of one kind to a new server.

    Args:
        repository: A repository with one model.
        kind: The kind.
        begin: Begins a request.
        arguments: The command-line arguments.
    """
    options = (*list_server_options(arguments), "--max-request-bytes", MAX_REQUEST_BYTES, "--log-level", "error")
    program = {"program": ("-m", "benchmarks.soak.leaking")} if arguments.leak else {}
    warm = min(WARM, arguments.requests // 2)
    step = max(1, (arguments.requests - warm) // SAMPLES)
    with (
        tempfile.TemporaryFile("w+") as log,
        serving(repository, *options, log=log, **program) as server,
        Memory(server.process.pid) as memory,
    ):
        outcomes: Counter[str] = Counter()
        started = time.monotonic()
        idle_mb = memory.now_mb()
        send(server.address, begin, warm, outcomes)
        done, samples = warm, [(warm, settle(memory))]
        while done < arguments.requests:
            send(server.address, begin, step, outcomes)
            done += step
            samples.append((done, settle(memory)))
        seconds = time.monotonic() - started
        logged = log.tell()
    requests, megabytes = np.array(samples).T
    slope = find_slope(requests, megabytes) * 1e5
    results = {"requests": done, "seconds": round(seconds, 1), "outcomes": dict(outcomes), "logged_bytes": logged}
    results |= {"idle_mb": idle_mb, "samples_mb": samples, "mb_per_100000": round(slope, 2)}
    misses = judge(slope, done - warm, outcomes)
    if kind == MIXED:
        misses = judge_mixed(samples[-1][1] - idle_mb, done, outcomes)
    return {**results, "misses": misses}


def find_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Fit the slope of a line by the median over all pairs of points (Theil-Sen).

    A single step, such as a new arena of the allocator, does not change it; growth that goes on does.

    Args:
        x: Positions, increasing, float (N,).
        y: Values, float (N,).
    """
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def judge(slope: float, requests: int, outcomes: Counter[str]) -> list[str]:
    """List the requirements that the server did not meet.

    Args:
        slope: Growth in megabytes per 100,000 requests.
        requests: Number of requests over which it was measured.
        outcomes: Number of requests by outcome.
    """
    bound = LARGEST_MB if requests >= 1e5 else NOISE_MB * 1e5 / requests
    misses = [] if slope < bound else [f"memory grows by {slope:.2f} MB per 100,000 requests, above {bound:.2f} MB"]
    if outcomes["stuck"]:
        misses.append(f"{outcomes['stuck']} calls never ended")
    return misses


def judge_mixed(grown_mb: float, requests: int, outcomes: Counter[str]) -> list[str]:
    """List the requirements that the server did not meet with requests of all kinds.

    Args:
        grown_mb: Memory above that of the idle server, in megabytes.
        requests: Number of requests.
        outcomes: Number of requests by outcome.
    """
    misses = [] if grown_mb <= MIXED_MB else [f"memory {grown_mb:.1f} MB over idle, above {MIXED_MB:.0f} MB"]
    fine = requests - -(-requests // EACH)
    if outcomes["status 0"] < fine:
        misses.append(f"{outcomes['status 0']} of {fine} fine requests answered")
    if outcomes["stuck"]:
        misses.append(f"{outcomes['stuck']} calls never ended")
    return misses


def settle(memory: Memory) -> float:
    """Measure the resident megabytes once no request is in flight."""
    time.sleep(SETTLE_S)
    return memory.now_mb()


def send(address: str, begin: Begin, count: int, outcomes: Counter[str]) -> None:
    """Send requests over new connections, and wait until all have ended.

    Each connection sends a few requests, then a health check, and waits until all of these have ended. So the server
    keeps up: requests that wait for it take memory, too, but are no leak.

    Args:
        address: HOST:PORT.
        begin: Begins a request; it may cancel it at once.
        count: Number of requests.
        outcomes: The counts by outcome, updated here.
    """
    check, empty = encode_call(CHECK), message(b"")
    connections = [Connection(address) for _ in range(CONNECTIONS)]
    checks: dict[int, int] = {}  # connection -> the stream of its health check
    begun, moved = 0, time.monotonic()
    while begun < count or any(one.open_streams for one in connections):
        for place, one in enumerate(connections):
            if begun < count and one.ready and not one.going and not one.open_streams:
                requests = min(IN_FLIGHT, count - begun)
                for _ in range(requests):
                    begin(one)
                begun += requests
                moved = time.monotonic()
                checks[place] = one.call(check, empty)
            one.flush()
            for call in one.receive():
                moved = time.monotonic()
                if call.stream != checks[place]:
                    outcomes[f"status {call.status}"] += 1
            if not one.alive or one.going:
                raise RuntimeError(
                    "the server closed a connection, although benchmarks/soak/leaks.py sends only acceptable requests"
                )
        if time.monotonic() - moved > STUCK_S:
            outcomes["stuck"] += sum(len(one.open_streams) for one in connections)
            break
        time.sleep(0.0002)
    for one in connections:
        one.close()


def show(kind: str, results: dict[str, Any]) -> None:
    """Print one line, and one for each requirement that was not met."""
    rate = results["requests"] / results["seconds"]
    print(
        f"{kind:20}{results['requests']:10}{rate:10.0f}{results['samples_mb'][-1][1]:8.1f}{results['mb_per_100000']:16.2f}"
    )
    for miss in results["misses"]:
        print(f"    failed: {miss}", flush=True)


if __name__ == "__main__":
    main()
