"""Size, start-up and throughput of the serving image, on both transports and by the number of CPUs.

    docker build -f docker/serving.Dockerfile -t evalmode-serving .
    python -m benchmarks.speed.containers --out benchmarks/results/DATE-containers.json [--engine docker]

The size is that of the layers above the base image, compressed by gzip as registries keep them. A server with a memory
limit and a read-only root serves two networks with random weights: `reference` for 32x32, and EfficientNet-Lite0 for
photos. It is started several times with each quota of CPUs: from the start of the process until /readyz is 200.
Then `evalmode bench` sends pixels to the small network, and a JPEG of 500x375 to the other. It runs on the same
machine, so with as many CPUs as the machine has, it competes with the server.

It takes about ten minutes. Exit 1 if a request failed, or the image is larger than 150 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from benchmarks.record import add_out, write_result
from benchmarks.servers import EVALMODE, certify_untrained, export_untrained, free_port, make_artifact
from evalmode.artifact.publishing import publish
from evalmode.bench.load import OK
from evalmode.images.pixels import PixelContract

TRANSPORTS = ("grpcio", "native")
CPUS = (0.5, 1.0, 2.0)
CALLERS = 16
LARGEST_MB = 150
LONGEST_START_S = 120.0
LABELS = tuple(map(str, range(10)))
GZIP = b"\x1f\x8b"
PACKAGES = ("evalmode", "onnxruntime", "grpcio", "pygrpc-native", "numpy")
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host")


def main() -> None:
    """Measure everything, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument(
        "--engine", default=os.environ.get("CONTAINER", "docker"), help="docker, or a program with its command line"
    )
    parser.add_argument("--image", default="evalmode-serving")
    parser.add_argument("--base", default="python:3.11-slim-bookworm", help="the image that it was built on")
    parser.add_argument("--memory", default="1g", help="memory limit of a server")
    parser.add_argument("--starts", type=int, default=3, help="with each quota")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of throughput")
    arguments = parser.parse_args()
    engine = Engine(arguments.engine, arguments.image, arguments.memory)
    figures: dict[str, Any] = {"image_versions": engine.find_versions()}
    figures["size_mb"] = engine.measure_size(arguments.base)
    print(figures, flush=True)
    figures["servers"] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        for transport in TRANSPORTS:
            for cpus in CPUS:
                figures["servers"].append(measure(engine, folder, arguments, transport, cpus))
                print(figures["servers"][-1], flush=True)
    arguments.engine = Path(arguments.engine).name
    write_result(arguments, figures)
    failed = sum(one["failed"] for one in figures["servers"])
    if failed or figures["size_mb"] > LARGEST_MB:
        sys.exit(f"{failed} requests failed, {figures['size_mb']} MB, at most {LARGEST_MB} MB are allowed")


def write_inputs(folder: Path) -> None:
    """Publish two networks with random weights, and write a JPEG of the size of a photo on a web page.

    Args:
        folder: An empty folder; all users may read it afterwards.
    """
    publish(folder / "models", "small", make_artifact(LABELS))
    publish(folder / "models", "photo", make_photo_artifact())
    rng = np.random.default_rng(0)
    shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(shapes) + rng.normal(0, 4, (375, 500, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "photo.jpg", quality=90)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def make_photo_artifact() -> bytes:
    """Certify EfficientNet-Lite0 for 224x224 RGB with random weights."""
    import torch

    from training.networks.efficientnet_lite import VARIANTS, EfficientNetLite

    torch.manual_seed(0)
    contract = PixelContract(224, 224, 3)
    graph = export_untrained(EfficientNetLite(VARIANTS["efficientnet-lite0"], len(LABELS), 0.0), contract)
    return certify_untrained(graph, contract, LABELS)


class Engine:
    """Runs the command line of a container engine.

    Args:
        program: The command, such as "docker".
        image: The serving image.
        memory: The memory limit of a server, as ``--memory`` takes it.
    """

    def __init__(self, program: str, image: str, memory: str) -> None:
        self._program, self._image, self._memory = program, image, memory

    def __call__(self, *arguments: object) -> str:
        """Run a command and return its output."""
        done = subprocess.run([self._program, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{self._program} {' '.join(map(str, arguments))}: {done.stderr}")
        return done.stdout.strip()

    def find_versions(self) -> dict[str, str]:
        """Return the versions of the engine, of Python and of the packages that matter in the image."""
        code = "import sys; from importlib.metadata import version; "
        code += f"print(sys.version.split()[0], *map(version, {PACKAGES}))"
        found = self("run", "--rm", "--entrypoint", "python", self._image, "-c", code).split()
        return {"engine": self("--version"), **dict(zip(("python", *PACKAGES), found, strict=True))}

    def measure_size(self, base: str) -> float:
        """Measure the compressed layers above another image, in megabytes.

        Args:
            base: The image that this one was built on.
        """
        shared = len(self._list_layers(base))
        if self._list_layers(self._image)[:shared] != self._list_layers(base):
            sys.exit(f"{self._image} was not built on {base}: name its base with --base")
        with tempfile.TemporaryDirectory() as name:
            archive = Path(name) / "image.tar"
            self("save", "-o", archive, self._image)
            return round(sum(measure_layers(archive, shared)), 1)

    def _list_layers(self, image: str) -> list[str]:
        return list(json.loads(self("image", "inspect", image))[0]["RootFS"]["Layers"])

    @contextmanager
    def serving(self, folder: Path, transport: str, cpus: float) -> Iterator[Container]:
        """Run the server on free ports, and wait until it is ready; it is removed at the end.

        Args:
            folder: The folder of ``models``.
            transport: ``--transport``.
            cpus: The number of CPUs that it may use.
        """
        port, metrics_port = free_port(), free_port()
        options = {"TRANSPORT": transport, "ALLOW_UNBOUNDED_MESSAGES": int(transport == "native"), "LAME_DUCK": 0}
        options |= {"HOST": "127.0.0.1", "PORT": port, "METRICS_PORT": metrics_port}
        given = [part for name, value in options.items() for part in ("-e", f"EVALMODE_SERVE_{name}={value}")]
        limits = ("--cpus", cpus, "--memory", self._memory, *HARDENED, "-v", f"{folder}/models:/models:ro")
        name = self("run", "-d", *limits, *given, self._image)
        try:
            ready = wait_until_ready(f"http://127.0.0.1:{metrics_port}/readyz")
            started = json.loads(self("inspect", name))[0]["State"]["StartedAt"]
            yield Container(f"127.0.0.1:{port}", metrics_port, ready - datetime.fromisoformat(started).timestamp())
        finally:
            self("rm", "-f", name)


@dataclass(frozen=True)
class Container:
    """A running server: the addresses of gRPC and of its metrics, and how long it took to get ready, in seconds."""

    address: str
    metrics_port: int
    start_s: float

    def find_memory_mib(self) -> float:
        """Return the resident memory of the server's processes, in MiB."""
        (found,) = re.findall(r"^process_resident_memory_bytes (\S+)", self._read("metrics"), re.MULTILINE)
        return round(float(found) / 2**20, 1)

    def find_slots(self) -> int:
        """Return the number of slots."""
        (found,) = re.findall(r"^evalmode_slots (\S+)", self._read("metrics"), re.MULTILINE)
        return int(float(found))

    def _read(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/{path}", timeout=10) as answer:
            return str(answer.read().decode())


def wait_until_ready(url: str) -> float:
    """Wait until an address answers with 200.

    Returns:
        The time, in seconds since 1970.
    """
    deadline = time.monotonic() + LONGEST_START_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=10).close()  # noqa: S310
            return time.time()
        except OSError:
            time.sleep(0.01)
    sys.exit(f"{url} is not ready after {LONGEST_START_S:.0f} s")


def measure_layers(archive: Path, shared: int = 0) -> list[float]:
    """Measure the layers of an image.

    Args:
        archive: The output of ``docker save``.
        shared: The number of lower layers that are left out.

    Returns:
        The size of each other layer compressed by gzip, in megabytes.
    """
    with tarfile.open(archive) as files:
        (image,) = json.load(extract(files, "manifest.json"))
        return [measure_layer(extract(files, name)) / 1e6 for name in image["Layers"][shared:]]


def extract(files: tarfile.TarFile, name: str) -> IO[bytes]:
    """Open a file of an archive, or what a link in it names."""
    found = files.extractfile(name)
    if found is None:
        sys.exit(f"the image has no file {name}")
    return found


def measure_layer(layer: IO[bytes]) -> int:
    """Measure a layer compressed by gzip, in bytes; some engines save it like that already."""
    start = layer.peek(2)[:2] if isinstance(layer, io.BufferedReader) else b""
    counted = Counter()
    with (
        contextlib.nullcontext(counted)
        if start == GZIP
        else gzip.GzipFile(fileobj=counted, mode="wb", compresslevel=6) as to
    ):
        shutil.copyfileobj(layer, to, 2**20)
    return counted.total


class Counter(io.RawIOBase):
    """A file that only counts the bytes that are written to it."""

    total = 0

    def write(self, data: Any) -> int:
        """Count bytes."""
        self.total += len(data)
        return len(data)


def measure(engine: Engine, folder: Path, arguments: argparse.Namespace, transport: str, cpus: float) -> dict[str, Any]:
    """Start a server several times, and measure the last one under load."""
    starts = []
    for _ in range(arguments.starts - 1):
        with engine.serving(folder, transport, cpus) as server:
            starts.append(server.start_s)
    with engine.serving(folder, transport, cpus) as server:
        loads = {
            "small": bench(server.address, arguments.seconds, "--model", "small"),
            "photo": bench(server.address, arguments.seconds, "--model", "photo", "--image", folder / "photo.jpg"),
        }
        memory_mib, slots = server.find_memory_mib(), server.find_slots()
    return {
        "transport": transport,
        "cpus": cpus,
        "slots": slots,
        "starts_s": [round(one, 2) for one in (*starts, server.start_s)],
        "memory_mib": memory_mib,
        "failed": sum(count for load in loads.values() for outcome, count in load["outcomes"].items() if outcome != OK),
        **loads,
    }


def bench(address: str, seconds: float, *options: object) -> dict[str, Any]:
    """Run ``evalmode bench``; return the figures of its only load, and the size of its request."""
    command = [*EVALMODE, "bench", address, "--json", "--in-flight", CALLERS, "--seconds", seconds, *options]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if not done.stdout:
        sys.exit(f"evalmode bench: {done.stderr}")
    report = json.loads(done.stdout)
    return {**report["loads"][0], "request_bytes": report["request_bytes"]}


if __name__ == "__main__":
    main()
