"""How fast servers answer, against ONNX Runtime alone: one network, one load generator, one run, taking turns.

    python benchmarks/serve.py --out benchmarks/results/DATE-serve.json [--rounds 3] [--peer NAME=PYTHON ...]

Makes `reference` for 32x32 RGB, fp32 and int8, and asks for one prepared image over one connection with `h2load`
(Debian: nghttp2-client), which shares the cores with the server. A peer (mlserver, kserve, pytriton: benchmarks/peers)
runs the same file on the same ONNX Runtime in an environment of its own, whose python is PYTHON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import torch
from lecture import processor  # beside this file
from PIL import Image

from serving.artifact import Manifest
from serving.bench.raw import measure_raw
from serving.bench.usage import cpu_seconds
from serving.certificate import INPUT
from serving.limits import Limits
from serving.pixels import PixelContract, decode_image
from serving.proof.certify import certify, draw_golden, strip
from serving.proof.quantize import quantize
from serving.repository import publish
from serving.wire import classifier_pb2
from serving.wire import open_inference_pb2 as wire

SIDE, LABELS = 32, 10
LOADS = (1, 8, 32)  # requests in flight
PREDICT, INFER = "evalmode.v1.Classifier/Predict", "inference.GRPCInferenceService/ModelInfer"
PEERS = Path(__file__).parent / "peers"
START_S = 60.0


@dataclass(frozen=True)
class Contestant:
    """A server, and what it is asked.

    Attributes:
        name: in the table.
        command: that starts it.
        folder: where.
        port: that it listens on.
        method: that is called.
        message: the request.
        network: "fp32" or "int8".
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    port: int
    method: str
    message: bytes
    network: str = "fp32"


def main() -> None:
    """Measure in turns, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="for each load")
    parser.add_argument("--peer", nargs="*", default=[], help="NAME=PYTHON: mlserver, kserve, pytriton")
    parser.add_argument("--only", nargs="*", help="these contestants alone")
    parser.add_argument("--idle", type=float, default=0, help="also watch each of ours idle for so many seconds")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifacts = make_networks(folder)
        contestants = [
            one for one in list_contestants(folder, arguments.peer) if not arguments.only or one.name in arguments.only
        ]
        for number in range(arguments.rounds):
            raw = {kind: measure_raw_best(path) for kind, path in artifacts.items()}
            runs += [{"round": number, "contestant": f"raw {kind}", **figures} for kind, figures in raw.items()]
            runs.append({"round": number, "contestant": "decoding", "rate": measure_decoding()})
            for contestant in contestants:
                for figures in measure(contestant, artifacts, arguments):
                    runs.append({"round": number, "contestant": contestant.name, **figures})
                    print(runs[-1], flush=True)
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "summary": summarise(runs),
        "runs": runs,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["summary"], indent=1))


def make_networks(folder: Path) -> dict[str, Path]:
    """`reference` with weights as drawn, fp32 and int8, published: speed does not ask what it learned."""
    from training.export import Deployed, export_graph
    from training.networks.reference import Reference

    torch.manual_seed(0)
    graph, _ = export_graph(Deployed(Reference(3, SIDE, SIDE, LABELS).eval()), (SIDE, SIDE, 3))
    contract = PixelContract(SIDE, SIDE, 3)
    images = {INPUT: draw_golden(contract, 256)}
    plain = strip(graph)
    found = {}
    for kind, model in (("fp32", plain), ("int8", quantize(plain, images[INPUT]))):
        manifest = Manifest(tuple(map(str, range(LABELS))), contract)
        artifact = certify(model, manifest, {INPUT: draw_golden(contract, LABELS)}, ("",) * 16, difference=0.0)
        publish(folder / kind, "network", artifact)
        found[kind] = folder / kind / "network" / "1" / "model.onnx"
    return found


def list_contestants(folder: Path, peers: list[str]) -> Iterator[Contestant]:
    """Our transports with both networks, pixels and JPEG; then the peers, who all speak the open protocol."""
    drawn = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    raw = classifier_pb2.Pixels(data=drawn.tobytes(), height=SIDE, width=SIDE, channels=3)
    pixels = classifier_pb2.PredictRequest(pixels=raw).SerializeToString()
    jpeg = classifier_pb2.PredictRequest(image=draw_jpeg()).SerializeToString()
    tensor = wire.ModelInferRequest.InferInputTensor(name=INPUT, datatype="UINT8", shape=(1, SIDE, SIDE, 3))
    infer = wire.ModelInferRequest(model_name="network", inputs=[tensor], raw_input_contents=[drawn.tobytes()])
    infer.outputs.add(name="probabilities")
    for transport in ("native", "grpcio"):
        for kind in ("fp32", "int8"):
            port = free_port()
            command = [
                sys.executable,
                "-m",
                "serving",
                "serve",
                "--repository",
                str(folder / kind),
                "--port",
                str(port),
            ]
            command += ["--transport", transport, "--lame-duck", "0", "--log-level", "error"]
            started = (tuple(command), folder, port)
            yield Contestant(f"{transport} {kind}", *started, PREDICT, pixels, kind)
            if kind == "fp32":
                yield Contestant(f"{transport} JPEG", *started, PREDICT, jpeg)
                yield Contestant(f"{transport} ModelInfer", *started, INFER, infer.SerializeToString())
    known = {
        "mlserver": (("-m", "mlserver.cli", "start", "."), PEERS / "mlserver", 8095),
        "kserve": (("kserve_network.py",), PEERS, 8098),
        "pytriton": (("pytriton_network.py",), PEERS, 8100),
    }
    for told in peers:
        name, python = told.split("=", 1)
        options, where, port = known[name]
        yield Contestant(name, (python, *options), where, port, INFER, infer.SerializeToString())


def draw_jpeg() -> bytes:
    """A small picture with edges, as photographs have."""
    y, x = np.mgrid[:SIDE, :SIDE]
    drawn = np.stack([x * 8, y * 8, ((x // 8 + y // 8) % 2) * 200], axis=-1).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(drawn).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def measure_raw_best(path: Path) -> dict[str, Any]:
    """ONNX Runtime alone: the fastest way, and one image at a time on one thread."""
    ways = measure_raw(path.read_bytes(), PixelContract(SIDE, SIDE, 3), os.cpu_count() or 1, seconds=1.0)
    alone = next(way for way in ways if (way.sessions, way.threads, way.batch) == (1, 1, 1))
    return {"rate": ways[0].rate, "way": vars(ways[0]), "alone_ms": alone.median_ms}


def measure_decoding() -> float:
    """JPEGs a second that all cores decode."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        return sum(pool.map(decode_for, [1.0] * cores))


def decode_for(seconds: float) -> float:
    """JPEGs a second that one core decodes."""
    jpeg, contract, limits = draw_jpeg(), PixelContract(SIDE, SIDE, 3), Limits()
    started, count = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        decode_image(jpeg, contract, limits)
        count += 1
    return count / (time.perf_counter() - started)


def measure(
    contestant: Contestant, artifacts: dict[str, Path], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Start a server; load it with one request at a time, then more."""
    with running(contestant, artifacts[contestant.network]) as (process, start_s):
        yield {"start_s": start_s}
        if arguments.idle and contestant.method == PREDICT:
            before = cpu_seconds(process)
            time.sleep(arguments.idle)
            yield {"idle_share": (cpu_seconds(process) - before) / arguments.idle}
        size = call(contestant)
        for in_flight in LOADS:
            rate = load(contestant, in_flight, 200 * in_flight, size)["rate"]  # warms, too
            before = cpu_seconds(process)
            figures = load(contestant, in_flight, max(100, round(rate * arguments.seconds)), size)
            figures["server_cpu_us"] = (cpu_seconds(process) - before) / figures["requests"] * 1e6
            yield {"in_flight": in_flight, **figures}


@contextmanager
def running(contestant: Contestant, model: Path) -> Iterator[tuple[psutil.Process, float]]:
    """The server as a process of its own, and the seconds until it first answered."""
    environment = {**os.environ, "MODEL": str(model)}
    started = time.perf_counter()
    with subprocess.Popen(
        contestant.command, cwd=contestant.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            while True:
                try:
                    call(contestant)
                    break
                except grpc.RpcError as error:
                    if process.poll() is not None or time.perf_counter() > started + START_S:
                        raise SystemExit(f"{contestant.name} does not answer: {error}") from error
                    time.sleep(0.02)
            yield psutil.Process(process.pid), time.perf_counter() - started
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def call(contestant: Contestant) -> int:
    """Ask once; the size of the reply on the wire, by which a refusal is known from an answer."""
    with grpc.insecure_channel(f"127.0.0.1:{contestant.port}") as channel:
        reply: bytes = channel.unary_unary("/" + contestant.method)(contestant.message, timeout=10)
    return len(reply) + 5


def load(contestant: Contestant, in_flight: int, requests: int, size: int) -> dict[str, Any]:
    """Closed loop over one connection; every reply must be a whole one."""
    with tempfile.TemporaryDirectory() as name:
        body, log = Path(name) / "body", Path(name) / "log"
        body.write_bytes(b"\0" + len(contestant.message).to_bytes(4, "big") + contestant.message)
        command = ["h2load", "-n", str(requests), "-c", "1", "-m", str(in_flight), "-d", str(body)]
        command += [f"--log-file={log}", "-H", "content-type: application/grpc", "-H", "te: trailers"]
        told = subprocess.run(
            [*command, f"http://127.0.0.1:{contestant.port}/{contestant.method}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        microseconds = [int(line.split()[2]) for line in log.read_text().splitlines()]
    rate = float(re.search(r"([\d.]+) req/s", told)[1])  # type: ignore[index]
    succeeded = int(re.search(r"(\d+) succeeded", told)[1])  # type: ignore[index]
    data = int(re.search(r"\((\d+)\) data", told)[1])  # type: ignore[index]
    # A reply says how long it took, in numbers of one to three bytes.
    if succeeded != requests or not 0.9 * size * requests <= data <= 1.1 * size * requests:
        raise SystemExit(
            f"{contestant.name}: {succeeded} of {requests} succeeded, {data} bytes, not {size} each\n{told}"
        )
    cuts = statistics.quantiles(microseconds, n=100)
    return {"rate": rate, "requests": requests, **{f"p{share}_ms": cuts[share - 1] / 1e3 for share in (50, 95, 99)}}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and the median ratio to ONNX Runtime alone in the same round."""
    raw = {(run["round"], run["contestant"]): run["rate"] for run in runs if run["contestant"].startswith("raw")}
    summary: dict[str, Any] = {}
    for name in dict.fromkeys(run["contestant"] for run in runs):
        mine = [run for run in runs if run["contestant"] == name]
        kind = "int8" if "int8" in name else "fp32"
        figures: dict[str, Any] = {}
        for key in ("start_s", "idle_share", "alone_ms"):
            figures.update(median_of(mine, key))
        for in_flight in (None, *LOADS):
            loaded = [run for run in mine if "rate" in run and run.get("in_flight") == in_flight]
            if not loaded:
                continue
            told = {}
            for key in ("rate", "p50_ms", "p99_ms", "server_cpu_us"):
                told.update(median_of(loaded, key))
            if in_flight:
                told["of_raw"] = round(
                    statistics.median(run["rate"] / raw[run["round"], f"raw {kind}"] for run in loaded), 3
                )
            figures[str(in_flight or "all")] = told
        summary[name] = figures
    return summary


def median_of(runs: list[dict[str, Any]], key: str) -> dict[str, float]:
    """The median of a figure that some runs have."""
    values = [run[key] for run in runs if key in run]
    return {key: round(statistics.median(values), 4)} if values else {}


if __name__ == "__main__":
    main()
