"""The cost of a request before and after a change: two checkouts, measured in turns.

    python -m benchmarks.speed.throughput --before CHECKOUT --out FILE [--pairs 15]

Serves the same network from both checkouts at the same time; one of them is loaded, the other is idle. 32 callers in a
closed loop send raw pixels, and JPEGs of 32 and of 500 pixels. Prints CPU microseconds per request (the server's, user
and system) and answers per second: medians, the median of the pairs' ratios, and its 95% interval by resampling.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.generator import Generating
from benchmarks.processes import ROOT
from benchmarks.record import add_out, write_result
from benchmarks.servers import SIDE, make_artifact, read_port
from evalmode.artifact.publishing import publish
from evalmode.wire import classifier_pb2

CALLERS = 32
WARM_S = 2.0
RESAMPLES = 10_000


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="a checkout of the code to compare with")
    add_out(parser)
    parser.add_argument("--transport", choices=("grpcio", "native"), default="grpcio")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        publish(folder / "models", "network", make_artifact(tuple(map(str, range(10)))))
        checkouts = (Path(arguments.before), ROOT)
        serve = [serving(checkout, folder / "models", arguments.transport) for checkout in checkouts]
        servers = [stack.enter_context(one) for one in serve]
        commit = ["git", "-C", arguments.before, "rev-parse", "--short", "HEAD"]
        arguments.before = subprocess.run(commit, check=True, capture_output=True, text=True).stdout.strip()
        for kind, request in make_requests().items():
            path = folder / kind.replace(" ", "-")
            path.write_bytes(request.SerializeToString())
            for server in servers:
                measure(server, path, WARM_S)
            pairs = []
            for number in range(arguments.pairs):
                order = servers if number % 2 else servers[::-1]
                measured = [measure(server, path, arguments.seconds) for server in order]
                pairs.append(measured if number % 2 else measured[::-1])
            figures[kind] = compare(np.array(pairs))
            print(kind, figures[kind])
            write_result(arguments, {"kinds": figures})


def make_requests() -> dict[str, classifier_pb2.PredictRequest]:
    """Make raw pixels and JPEGs, of noise smooth enough to compress like a photo."""
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    pixels = classifier_pb2.Pixels(data=raw.tobytes(), height=SIDE, width=SIDE, channels=3)
    requests = {"raw pixels": classifier_pb2.PredictRequest(pixels=pixels)}
    for side in (32, 500):
        file = io.BytesIO()
        small = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        requests[f"JPEG of {side} pixels"] = classifier_pb2.PredictRequest(image=file.getvalue())
    return requests


@contextmanager
def serving(checkout: Path, repository: Path, transport: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server of a checkout; yield its address and its process."""
    package = "evalmode" if (checkout / "evalmode").is_dir() else "serving"  # before version 0.2
    command = [sys.executable, "-P", "-m", package, "serve"]
    options = ["--repository", repository, "--port", 0, "--no-metrics", "--lame-duck", 0, "--transport", transport]
    process = subprocess.Popen(
        [*command, *map(str, (*options, "--log-level", "error"))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
    )
    try:
        yield f"127.0.0.1:{read_port(process)}", psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def measure(server: tuple[str, psutil.Process], request: Path, seconds: float) -> tuple[float, float]:
    """Measure CPU microseconds per request, and answers per second."""
    address, process = server
    before = sum(process.cpu_times()[:2])
    asked = ("--callers", CALLERS, "--seconds", seconds, "--deadline", 30)
    figures = Generating(address, request, *asked).figures()
    spent = sum(process.cpu_times()[:2]) - before
    return spent * 1e6 / figures["outcomes"]["OK"], figures["answers_per_s"]


def compare(pairs: np.ndarray) -> dict[str, Any]:
    """Compute the medians of both, and the median ratio after/before with its interval; pairs: (N, 2, 2)."""
    random = np.random.default_rng(0)
    figures: dict[str, Any] = {}
    for place, name in enumerate(("cpu_us", "answers_per_s")):
        ratios = pairs[:, 1, place] / pairs[:, 0, place]
        drawn = np.median(random.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
        figures[name] = [round(float(one), 1) for one in np.median(pairs[:, :, place], axis=0)]
        figures[f"{name}_ratio"] = round(float(np.median(ratios)), 3)
        figures[f"{name}_interval"] = [round(float(one), 3) for one in np.percentile(drawn, (2.5, 97.5))]
    return figures


if __name__ == "__main__":
    main()
