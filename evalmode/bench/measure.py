"""Measure a server under several loads, together with what limits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalmode.artifact.sealing import digest_file
from evalmode.bench import load, usage
from evalmode.bench.raw import Raw, measure_raw
from evalmode.client import Client
from evalmode.errors import UsageError
from evalmode.images.pixels import PixelContract
from evalmode.runtime.cpus import count_cpus
from evalmode.wire import classifier_pb2 as wire

RAW_S = 1.0  # the duration of each measurement of ONNX Runtime


@dataclass(frozen=True)
class BenchOptions:
    """How a server is measured.

    Attributes:
        model: The model's name; may be "" if the server has one model.
        image: An encoded image to send; None sends pixels of the model's size.
        in_flight: Closed loops, with these numbers of callers.
        rate: Requests per second of an open loop; None for closed loops.
        seconds: The duration of each load.
        timeout: The deadline of a call in seconds.
        file: The artifact that is served, to measure ONNX Runtime without a server; None to leave that out.
    """

    model: str
    image: Path | None
    in_flight: tuple[int, ...]
    rate: float | None
    seconds: float
    timeout: float
    file: Path | None


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        address: The server.
        model: NAME/VERSION.
        request_bytes: The size of the request, without gRPC's headers.
        raw: The highest throughput of ONNX Runtime without a server; None if it was not measured.
        loads: The figures of each load as JSON values.
    """

    address: str
    model: str
    request_bytes: int
    raw: Raw | None
    loads: list[dict[str, Any]]

    @property
    def failed(self) -> int:
        """The number of requests without a correct answer."""
        outcomes = [pair for row in self.loads for pair in row["outcomes"].items()]
        return sum(count for outcome, count in outcomes if outcome != load.OK)


def measure_server(address: str, options: BenchOptions) -> BenchResult:
    """Send one prepared request to a server under each load.

    Args:
        address: HOST:PORT.
        options: How it is measured.

    Returns:
        The figures.

    Raises:
        CallFailed: The server does not describe the model.
        UsageError: ``options.file`` is not the artifact that is served.
    """
    with Client(address, timeout_s=options.timeout) as client:
        model = client.get_model(options.model)
    contract = PixelContract(model.pixels.height, model.pixels.width, model.pixels.channels)
    raw = None
    if options.file:
        artifact = options.file.read_bytes()
        if (digest := digest_file(artifact)) != model.digest:
            raise UsageError(
                f"{options.file} is {digest}, the server answers with {model.digest}: give the file that is served"
            )
        raw = measure_raw(artifact, contract, count_cpus(), RAW_S)[0]
    request = _make_request(options.image, contract, model.model)
    rows = [_measure(address, name, run, raw) for name, run in _list_loads(address, request, options).items()]
    return BenchResult(address, f"{model.model}/{model.version}", len(request), raw, rows)


def _list_loads(address: str, request: bytes, options: BenchOptions) -> dict[str, Callable[[], load.Measured]]:
    """Each load by its name."""
    seconds, timeout_s = options.seconds, options.timeout
    if rate := options.rate:
        return {f"{rate:g}/s": lambda: load.at_rate(address, request, rate, seconds, timeout_s)}

    def close_loop(count: int) -> Callable[[], load.Measured]:
        return lambda: load.in_flight(address, request, count, seconds, timeout_s)

    return {f"{count} in flight": close_loop(count) for count in options.in_flight}


def _measure(address: str, name: str, run: Callable[[], load.Measured], raw: Raw | None) -> dict[str, Any]:
    """The figures of one load, with the server's processor time and memory if it runs on this machine."""
    server = usage.find_server(address)
    before = usage.cpu_seconds(server)
    measured = run()
    row = {"load": name, **load.describe(measured)}
    row |= {"server_cpu_us": None, "server_memory_bytes": None}
    if server and usage.find_server(address) == server:  # otherwise a worker was started again
        row["server_cpu_us"] = round((usage.cpu_seconds(server) - before) / max(1, measured.requests) * 1e6)
        row["server_memory_bytes"] = usage.resident_bytes(server)
    row["of_raw"] = round(measured.rate / raw.rate, 3) if raw else None
    return row


def _make_request(image: Path | None, contract: PixelContract, model: str) -> bytes:
    if image:
        return wire.PredictRequest(image=image.read_bytes(), model=model, top_k=1).SerializeToString()
    drawn = np.random.default_rng(0).integers(0, 256, contract.shape).astype(np.uint8)
    pixels = wire.Pixels(data=drawn.tobytes(), height=contract.height, width=contract.width, channels=contract.channels)
    return wire.PredictRequest(pixels=pixels, model=model, top_k=1).SerializeToString()
