"""How much of the processor's time for photos is decoding and the network, on both transports.

    python -m benchmarks.speed.photo_serving MODEL IMAGE --out FILE [--rounds 7]

MODEL is an artifact for photos, such as one of efficientnet-lite0 at 224 pixels. IMAGE is a JPEG; it is resized so that
its longer side has 500 pixels. Each round measures, in turns: decoding and the network in this process on one thread
("raw"), answers per second of each server with 16 requests in flight, and the latency of one request at a time with
and without --one-thread. "network_alone" is the network as a request that is alone gets it: on all cores.

The share is answers per second, times the raw seconds of an image, divided by the cores that the load generator leaves
to the server. "cpu_share" is the raw processor time divided by the server's processor time per answer, which other
processes on the machine disturb less.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.generator import Generating
from benchmarks.record import add_out, write_result
from benchmarks.servers import Server, serving
from evalmode.artifact.publishing import publish
from evalmode.artifact.tensors import INPUT
from evalmode.images.pixels import decode_image
from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from evalmode.runtime.loading import LoadOptions, load_model
from evalmode.wire import classifier_pb2

LONGER_SIDE = 500
CALLERS = 16
WARM_S, LONE_S = 1.0, 1.5
RAW_RUNS = 40
TRANSPORTS = ("grpcio", "native")


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    add_out(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement of throughput")
    arguments = parser.parse_args()
    jpeg = shrink(arguments.image)
    raw = Raw(arguments.model, jpeg)
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        publish(folder / "models", "photos", arguments.model.read_bytes())
        request = folder / "request"
        request.write_bytes(classifier_pb2.PredictRequest(image=jpeg).SerializeToString())
        servers = {}
        for transport in TRANSPORTS:
            for how in ((), ("--one-thread",)):
                options = ("--transport", transport, *how)
                servers["-".join((transport, *how))] = stack.enter_context(serving(folder / "models", *options))
        for server in servers.values():
            Generating(server.address, request, "--callers", CALLERS, "--seconds", WARM_S, "--deadline", 30).figures()
        for _ in range(arguments.rounds):
            rounds.append(measure_round(raw, servers, request, arguments.seconds))
            print({name: round(value, 4) for name, value in rounds[-1].items()}, flush=True)
    figures = {name: round(statistics.median(one[name] for one in rounds), 4) for name in rounds[0]}
    print("medians", figures)
    write_result(arguments, {"medians": figures, "rounds": rounds})


def measure_round(raw: Raw, servers: dict[str, Server], request: Path, seconds: float) -> dict[str, float]:
    """Measure everything once."""
    figures = raw.measure()
    for name, server in servers.items():
        if name in TRANSPORTS:
            figures |= {f"{name}_{what}": value for what, value in load(server, request, seconds, figures).items()}
        figures[f"{name}_lone_ms"] = Generating(
            server.address, request, "--callers", 1, "--seconds", LONE_S, "--deadline", 30
        ).figures()["answer_ms_p50"]
    return figures


def load(server: Server, request: Path, seconds: float, raw: dict[str, float]) -> dict[str, float]:
    """Measure the throughput of a server, and its share of the raw speed."""
    process = psutil.Process(server.process.pid)
    before = sum(process.cpu_times()[:2])
    asked = ("--callers", CALLERS, "--seconds", seconds, "--deadline", 30)
    figures = Generating(server.address, request, *asked).figures()
    spent_ms = (sum(process.cpu_times()[:2]) - before) * 1e3 / figures["outcomes"]["OK"]
    cores = count_cpus() - figures["processor_share"]
    return {
        "answers_per_s": figures["answers_per_s"],
        "cpu_ms": spent_ms,
        "share": figures["answers_per_s"] * (raw["decode_ms"] + raw["network_ms"]) / 1e3 / cores,
        "cpu_share": (raw["decode_cpu_ms"] + raw["network_cpu_ms"]) / spent_ms,
        "generator_cores": figures["processor_share"],
        "server_cores": spent_ms * figures["answers_per_s"] / 1e3,
    }


class Raw:
    """Decoding and the network on one thread, and the network as a request that is alone gets it.

    Args:
        model: The artifact.
        jpeg: The image.
    """

    def __init__(self, model: Path, jpeg: bytes) -> None:
        options = LoadOptions(lone_threads=count_cpus())
        self._model = load_model(model, options=options).as_classifier()
        self._jpeg = jpeg

    def measure(self) -> dict[str, float]:
        """Measure medians, in milliseconds."""
        contract = self._model.manifest.pixels
        pixels = decode_image(self._jpeg, contract, Limits())[np.newaxis]
        steps = {
            "decode": lambda: decode_image(self._jpeg, contract, Limits()),
            "network": lambda: self._model.run({INPUT: pixels}),
            "network_alone": lambda: self._model.run({INPUT: pixels}, (), True),
        }
        seen: dict[str, list[float]] = {f"{name}{clock}_ms": [] for name in steps for clock in ("", "_cpu")}
        for _ in range(RAW_RUNS):
            for name, step in steps.items():
                started, spent = time.perf_counter(), time.thread_time()
                step()  # type: ignore[no-untyped-call]
                seen[f"{name}_ms"].append((time.perf_counter() - started) * 1e3)
                seen[f"{name}_cpu_ms"].append((time.thread_time() - spent) * 1e3)
        return {name: statistics.median(values) for name, values in seen.items()}


def shrink(path: Path) -> bytes:
    """Resize an image so that its longer side has 500 pixels, as JPEG."""
    with Image.open(path) as picture:
        scale = LONGER_SIDE / max(picture.size)
        resized = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)))
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
