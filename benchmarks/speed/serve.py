"""Measures servers against ONNX Runtime alone, with one network and one load generator, in interleaved rounds.

    python -m benchmarks.speed.serve --out FILE [--rounds 5] [--peer NAME=PYTHON ...]

Makes `reference` for 32x32 RGB, fp32 and int8, and sends one prepared image over one and over eight connections with
`h2load` (Debian: nghttp2-client), which shares the cores with the server. A peer (mlserver, kserve, pytriton, mosec:
benchmarks/peers) runs the same file on the same ONNX Runtime in an environment of its own, whose interpreter is PYTHON.
Use one build of Python for all: the build makes a difference of a third. Run it within `taskset` to use fewer cores.

h2load counts a gRPC error as a success. Therefore an answer is compared with ONNX Runtime's own before and after each
load, and the number of received bytes must match the number of answers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import torch
from matplotlib import pyplot
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.processes import ROOT
from benchmarks.record import add_out, describe_result, write_result
from benchmarks.servers import EVALMODE, certify_untrained, export_untrained, free_port
from evalmode.artifact.publishing import publish
from evalmode.artifact.tensors import INPUT, PROBABILITIES
from evalmode.bench.raw import measure_raw
from evalmode.bench.usage import cpu_seconds
from evalmode.certification.certify import draw_golden
from evalmode.certification.quantize import quantize
from evalmode.images.pixels import PixelContract, decode_image
from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from evalmode.runtime.session import open_cpu_session
from evalmode.wire import classifier_pb2
from evalmode.wire import open_inference_pb2 as wire

SIDE, LABELS = 32, 10
LOADS = ((1, 1), (8, 1), (32, 1), (32, 8))  # requests in flight, over so many connections
WORKERS = 2
PREDICT, INFER = "evalmode.v1.Classifier/Predict", "inference.GRPCInferenceService/ModelInfer"
PEERS = ROOT / "benchmarks" / "peers"
START_S = 60.0
ASK_VERSIONS = """
import json, platform, sys
from importlib.metadata import version
versions = {"python": platform.python_version(), "version": version(sys.argv[1]), "onnxruntime": version("onnxruntime")}
print(json.dumps(versions))
"""


@dataclass(frozen=True)
class Contestant:
    """A server and its request.

    Attributes:
        name: Name in the table.
        command: The command that starts the server.
        folder: Working directory.
        port: Port that the server listens on.
        method: Path of the method; a path of HTTP/1.1 if it begins with a slash.
        message: The request.
        read: Reads the probability of the most probable label from a reply.
        network: "fp32" or "int8".
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    port: int
    method: str
    message: bytes
    read: Callable[[bytes], float]
    network: str = "fp32"


def main() -> None:
    """Measure in turns, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="for each load")
    parser.add_argument("--peer", nargs="*", default=[], help="NAME=PYTHON: mlserver, kserve, pytriton, mosec")
    parser.add_argument("--only", nargs="*", help="these contestants alone")
    parser.add_argument(
        "--idle", type=float, default=0, help="also measure each evalmode server idle for this many seconds"
    )
    arguments = parser.parse_args()
    peers, runs = find_peers(arguments.peer), list[dict[str, Any]]()
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
                    print(runs[-1], file=sys.stderr, flush=True)
            write_result(arguments, {"peers": peers, "summary": summarise(runs), "runs": runs})
    results = json.loads(arguments.out.read_text())
    print_table(results)
    draw_plot(results, arguments.out.with_suffix(".png"))


def make_networks(folder: Path) -> dict[str, Path]:
    """Publish `reference` with random weights, fp32 and int8: speed does not depend on training."""
    from training.networks.reference import Reference

    torch.manual_seed(0)
    contract = PixelContract(SIDE, SIDE, 3)
    plain = export_untrained(Reference(3, SIDE, SIDE, LABELS), contract)
    found = {}
    for kind, graph in (("fp32", plain), ("int8", quantize(plain, draw_golden(contract, 256)))):
        publish(folder / kind, "network", certify_untrained(graph, contract, tuple(map(str, range(LABELS)))))
        found[kind] = folder / kind / "network" / "1" / "model.onnx"
    return found


def list_contestants(folder: Path, peers: list[str]) -> Iterator[Contestant]:
    """List both transports with both networks, pixels and JPEG; then the peers, which all use the open protocol."""
    drawn = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    raw = classifier_pb2.Pixels(data=drawn.tobytes(), height=SIDE, width=SIDE, channels=3)
    pixels = classifier_pb2.PredictRequest(pixels=raw).SerializeToString()
    jpeg = classifier_pb2.PredictRequest(image=draw_jpeg()).SerializeToString()
    tensor = wire.ModelInferRequest.InferInputTensor(name=INPUT, datatype="UINT8", shape=(1, SIDE, SIDE, 3))
    infer = wire.ModelInferRequest(model_name="network", inputs=[tensor], raw_input_contents=[drawn.tobytes()])
    infer.outputs.add(name="probabilities")
    for transport, workers, kind in (
        ("native", 1, "fp32"),
        ("native", 1, "int8"),
        ("native", WORKERS, "fp32"),
        ("grpcio", 1, "fp32"),
        ("grpcio", 1, "int8"),
        ("grpcio", WORKERS, "fp32"),
    ):
        port = free_port()
        command = [sys.executable, *EVALMODE, "serve", "--repository", str(folder / kind), "--port", str(port)]
        command += ["--transport", transport, "--workers", str(workers)]
        command += ["--metrics-port", "0", "--lame-duck", "0", "--log-level", "error"]
        started = (tuple(command), folder, port)
        name = f"{transport} {kind}" + (f", {workers} workers" if workers > 1 else "")
        yield Contestant(name, *started, PREDICT, pixels, read_prediction, kind)
        if (workers, kind) == (1, "fp32"):
            yield Contestant(f"{transport} JPEG", *started, PREDICT, jpeg, read_prediction)
            yield Contestant(f"{transport} ModelInfer", *started, INFER, infer.SerializeToString(), read_tensor)
    known = {
        "mlserver": (("-c", "from mlserver.cli import main; main()", "start", "."), PEERS / "mlserver", 8095),
        "kserve": (("network.py",), PEERS / "kserve", 8098),
        "pytriton": (("network.py",), PEERS / "pytriton", 8100),
        "mosec": (("network.py", "--port", "8102"), PEERS / "mosec", 8102),
    }
    for peer in peers:
        name, python = peer.split("=", 1)
        options, where, port = known[name]
        asked = (INFER, infer.SerializeToString(), read_tensor)
        if name == "mosec":
            asked = ("/inference", drawn.tobytes(), read_floats)
        yield Contestant(name, (python, *options), where, port, *asked)


def find_peers(peers: list[str]) -> dict[str, dict[str, str]]:
    """Return the versions of each peer, of its Python and of its ONNX Runtime, from its interpreter."""
    packages = {"pytriton": "nvidia-pytriton"}
    found = {}
    for name, python in (peer.split("=", 1) for peer in peers):
        asked = [python, "-c", ASK_VERSIONS, packages.get(name, name)]
        found[name] = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout)
    return found


def read_prediction(reply: bytes) -> float:
    """Read a reply of evalmode.v1."""
    return float(classifier_pb2.PredictResponse.FromString(reply).scores[0].probability)


def read_tensor(reply: bytes) -> float:
    """Read a reply of the open protocol."""
    answer = wire.ModelInferResponse.FromString(reply)
    return (
        read_floats(answer.raw_output_contents[0])
        if answer.raw_output_contents
        else max(answer.outputs[0].contents.fp32_contents)
    )


def read_floats(reply: bytes) -> float:
    """Read bare probabilities."""
    return float(np.frombuffer(reply, np.float32).max())


def draw_jpeg() -> bytes:
    """Make a small picture with edges, as photographs have."""
    y, x = np.mgrid[:SIDE, :SIDE]
    drawn = np.stack([x * 8, y * 8, ((x // 8 + y // 8) % 2) * 200], axis=-1).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(drawn).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure_raw_best(path: Path) -> dict[str, Any]:
    """Measure ONNX Runtime alone: the fastest configuration, and one image at a time on one thread."""
    ways = measure_raw(path.read_bytes(), PixelContract(SIDE, SIDE, 3), count_cpus(), seconds=1.0)
    alone = next(way for way in ways if (way.sessions, way.threads, way.batch) == (1, 1, 1))
    return {"rate": ways[0].rate, "way": vars(ways[0]), "alone_ms": alone.median_ms}


def measure_decoding() -> float:
    """Measure the JPEGs per second that all cores decode."""
    cores = count_cpus()
    with ProcessPoolExecutor(cores) as pool:
        return sum(pool.map(decode_for, [1.0] * cores))


def decode_for(seconds: float) -> float:
    """Measure the JPEGs per second that one core decodes."""
    jpeg, contract, limits = draw_jpeg(), PixelContract(SIDE, SIDE, 3), Limits()
    started, count = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        decode_image(jpeg, contract, limits)
        count += 1
    return count / (time.perf_counter() - started)


def measure(
    contestant: Contestant, artifacts: dict[str, Path], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Start a server; load it with one request at a time, then with more."""
    with running(contestant, artifacts[contestant.network]) as (process, start_s):
        yield {"start_s": start_s}
        if arguments.idle and contestant.method == PREDICT:
            before = cpu_seconds([process])
            time.sleep(arguments.idle)
            yield {"idle_share": (cpu_seconds([process]) - before) / arguments.idle}
        expected = expect(contestant, artifacts[contestant.network])
        for in_flight, connections in LOADS:
            size = check(contestant, expected)
            rate = load(contestant, in_flight, connections, 200 * in_flight, size)["rate"]  # also warms up
            before = cpu_seconds([process])
            figures = load(contestant, in_flight, connections, max(100, round(rate * arguments.seconds)), size)
            figures["server_cpu_us"] = (cpu_seconds([process]) - before) / figures["requests"] * 1e6
            check(contestant, expected)
            yield {"load": describe_load(in_flight, connections), **figures}


def describe_load(in_flight: int, connections: int) -> str:
    """Return for example "32 in flight, 8 connections"."""
    return f"{in_flight} in flight" + (f", {connections} connections" if connections > 1 else "")


def expect(contestant: Contestant, artifact: Path) -> float:
    """Compute the probability of the most probable label with ONNX Runtime."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    if contestant.method == PREDICT and (encoded := classifier_pb2.PredictRequest.FromString(contestant.message).image):
        image = decode_image(encoded, PixelContract(SIDE, SIDE, 3), Limits())
    (probabilities,) = open_cpu_session(artifact.read_bytes()).run([PROBABILITIES], {INPUT: image[np.newaxis]})
    return float(probabilities.max())


def check(contestant: Contestant, expected: float) -> int:
    """Send one request and compare the answer. Return the size of the reply, which tells answers from errors."""
    reply = call(contestant)
    if abs((got := contestant.read(reply)) - expected) > 1e-5:
        raise SystemExit(f"{contestant.name} answers {got}, ONNX Runtime {expected}")
    return len(reply) + (0 if contestant.method.startswith("/") else 5)  # prefix of gRPC


@contextmanager
def running(contestant: Contestant, model: Path) -> Iterator[tuple[psutil.Process, float]]:
    """Run the server in a process of its own; yield the seconds until its first answer."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        environment = {**os.environ, "MODEL": str(model), "PYTRITON_HOME": home}  # for the sockets that it leaves
        process = subprocess.Popen(contestant.command, cwd=contestant.folder, env=environment, stdout=log, stderr=log)
        try:
            while True:
                try:
                    call(contestant)
                    break
                except (grpc.RpcError, OSError) as error:
                    if process.poll() is not None or time.perf_counter() > started + START_S:
                        log.seek(0)
                        raise SystemExit(
                            f"{contestant.name} does not answer: {error}\n{log.read().decode()}"
                        ) from error
                    time.sleep(0.02)
            yield psutil.Process(process.pid), time.perf_counter() - started
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server with its child processes, some of which outlive it."""
    children = []
    with suppress(psutil.NoSuchProcess):  # it has ended
        children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in psutil.wait_procs(children, 1)[1]:
        child.kill()


def call(contestant: Contestant) -> bytes:
    """Send one request."""
    if contestant.method.startswith("/"):
        url = f"http://127.0.0.1:{contestant.port}{contestant.method}"
        with urllib.request.urlopen(url, contestant.message, 10) as answer:
            return bytes(answer.read())
    with grpc.insecure_channel(f"127.0.0.1:{contestant.port}") as channel:
        reply: bytes = channel.unary_unary("/" + contestant.method)(contestant.message, timeout=10)
    return reply


def load(contestant: Contestant, in_flight: int, connections: int, requests: int, size: int) -> dict[str, Any]:
    """Run a closed loop over connections (one per caller for HTTP/1.1); every reply must be complete."""
    with tempfile.TemporaryDirectory() as name:
        body, log = Path(name) / "body", Path(name) / "log"
        command = ["h2load", "-n", str(requests), "-d", str(body), f"--log-file={log}"]
        if plain := contestant.method.startswith("/"):
            body.write_bytes(contestant.message)
            command += ["--h1", "-c", str(in_flight)]
        else:
            body.write_bytes(b"\0" + len(contestant.message).to_bytes(4, "big") + contestant.message)
            command += [
                "-c",
                str(connections),
                "-m",
                str(in_flight // connections),
                "-H",
                "content-type: application/grpc",
                "-H",
                "te: trailers",
            ]
        path = contestant.method if plain else "/" + contestant.method
        command.append(f"http://127.0.0.1:{contestant.port}{path}")
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        microseconds = [int(line.split()[2]) for line in log.read_text().splitlines()]
    rate = float(re.search(r"([\d.]+) req/s", output)[1])  # type: ignore[index]
    succeeded = int(re.search(r"(\d+) succeeded", output)[1])  # type: ignore[index]
    data = int(re.search(r"\((\d+)\) data", output)[1])  # type: ignore[index]
    # A reply of evalmode has three durations of one to three bytes each; replies of other servers have none.
    spread = 6 if contestant.method == PREDICT else 0
    if succeeded != requests or abs(data - size * requests) > spread * requests:
        raise SystemExit(
            f"{contestant.name}: {succeeded} of {requests} succeeded, {data} bytes, not {size} each\n{output}"
        )
    cuts = statistics.quantiles(microseconds, n=100)
    return {"rate": rate, "requests": requests, **{f"p{share}_ms": cuts[share - 1] / 1e3 for share in (50, 95, 99)}}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute medians over the rounds, and the median ratio to ONNX Runtime alone in the same round."""
    raw = {(run["round"], run["contestant"]): run["rate"] for run in runs if run["contestant"].startswith("raw")}
    summary: dict[str, Any] = {}
    for name in dict.fromkeys(run["contestant"] for run in runs):
        mine = [run for run in runs if run["contestant"] == name]
        kind = "int8" if "int8" in name else "fp32"
        figures: dict[str, Any] = {}
        for key in ("start_s", "idle_share", "alone_ms"):
            figures.update(describe(mine, key))
        for described in (None, *(describe_load(*one) for one in LOADS)):
            loaded = [run for run in mine if "rate" in run and run.get("load") == described]
            if not loaded:
                continue
            load_figures = {}
            for key in ("rate", "p50_ms", "p99_ms", "server_cpu_us"):
                load_figures.update(describe(loaded, key))
            if described:
                for run in loaded:
                    run["of_raw"] = run["rate"] / raw[run["round"], f"raw {kind}"]
                load_figures.update(describe(loaded, "of_raw"))
            figures[described or "all"] = load_figures
        summary[name] = figures
    return summary


def describe(runs: list[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Compute median, minimum and maximum of a figure that some runs have."""
    values = [run[key] for run in runs if key in run]
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else {}
    return {key: {name: round(value, 4) for name, value in figures.items()}} if values else {}


def print_table(results: dict[str, Any]) -> None:
    """Print the medians: rate and latency for each load, and the share of ONNX Runtime alone for the largest load."""
    table = Table(box=box.SIMPLE_HEAD, caption=f"{describe_result(results)}; medians")
    table.add_column("contestant", style="bold", no_wrap=True)
    for name in ("start s", *(describe_load(*one) for one in LOADS), "of raw", "server us", "idle"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, figures in results["summary"].items():
        if "all" in figures:
            alone = f"one at a time {figures['alone_ms']['median']:.2f} ms" if "alone_ms" in figures else ""
            table.add_row(name, "", alone, "", "", f"{figures['all']['rate']['median']:,.0f}/s", "1.00", "", "")
            continue
        loads = [figures[describe_load(*one)] for one in LOADS]
        table.add_row(
            name,
            f"{figures['start_s']['median']:.2f}",
            *(f"{load['rate']['median']:,.0f}/s {load['p50_ms']['median']:.2f} ms" for load in loads),
            f"{loads[-1]['of_raw']['median']:.2f}",
            f"{loads[-1]['server_cpu_us']['median']:,.0f}",
            f"{figures['idle_share']['median']:.2%}" if "idle_share" in figures else "",
        )
    Console(width=150).print(table)


def draw_plot(results: dict[str, Any], path: Path) -> None:
    """Plot images per second for the largest load: median, minimum and maximum, with ONNX Runtime alone."""
    largest = describe_load(*LOADS[-1])
    shown = {name: figures.get("all", figures.get(largest)) for name, figures in results["summary"].items()}
    shown.pop("decoding")
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(shown) + 1.2), layout="constrained")
    for name, figures in shown.items():
        rate = figures["rate"]
        spread = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
        is_evalmode = name.startswith(("native", "grpcio"))
        colour = "#9ca3af" if name.startswith("raw") else "#d1495b" if is_evalmode else "#2a6fbb"
        axes.barh(name, rate["median"], xerr=spread, color=colour, error_kw={"lw": 1, "ecolor": "#374151"})
        axes.text(rate["max"], name, f" {rate['median']:,.0f}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"images a second, {largest}: median, minimum to maximum\n{describe_result(results)}")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
