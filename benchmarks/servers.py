"""The common part of the serving benchmarks: `reference` with random weights, and servers in processes of their own."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from benchmarks.processes import make_environment
from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.tensors import INPUT
from evalmode.certification.certify import certify, draw_golden, strip
from evalmode.images.pixels import PixelContract

if TYPE_CHECKING:
    import onnx
    from torch import nn

SIDE = 32
EVALMODE = ("-m", "evalmode")
LONGEST_STOP_S = 40.0  # the default of --grace, plus a margin
CONTRACT = PixelContract(SIDE, SIDE, 3)


def make_artifact(labels: tuple[str, ...], **properties: Any) -> bytes:
    """Certify `reference` for 32x32 RGB with random weights: speed, swaps and drift do not depend on training.

    Args:
        labels: The labels.
        properties: Further properties of the manifest.
    """
    import torch

    from training.networks.reference import Reference

    torch.manual_seed(0)
    graph = export_untrained(Reference(3, SIDE, SIDE, len(labels)), CONTRACT)
    return certify_untrained(graph, CONTRACT, labels, **properties)


def export_untrained(network: nn.Module, contract: PixelContract) -> onnx.ModelProto:
    """Export a network as it is, in eval mode.

    Args:
        network: The network.
        contract: The shape of its pixels.
    """
    from training.onnx_export import Deployed, export_graph

    return strip(export_graph(Deployed(network.eval()), contract.shape)[0])


def certify_untrained(
    graph: onnx.ModelProto, contract: PixelContract, labels: tuple[str, ...], **properties: Any
) -> bytes:
    """Certify a graph whose answers mean nothing.

    Args:
        graph: The graph.
        contract: The pixel contract.
        labels: The labels.
        properties: Further properties of the manifest.
    """
    golden = draw_golden(contract, len(labels))
    manifest = ClassifierManifest(labels, contract, properties)
    return certify(graph, manifest, {INPUT: golden}, ("",) * len(golden), difference=0.0)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark take the transport and the number of workers; ``list_server_options`` passes them on."""
    parser.add_argument("--transport", choices=("grpcio", "native"), default="grpcio")
    parser.add_argument("--workers", default="1", help="processes of the server, or auto; default: 1")


def list_server_options(arguments: argparse.Namespace) -> tuple[object, ...]:
    """List the options of ``evalmode serve`` that ``add_server_options`` has added."""
    return "--transport", arguments.transport, "--workers", arguments.workers


@dataclass
class Server:
    """A running server: its process, and the addresses of gRPC and of its metrics."""

    process: subprocess.Popen[str]
    address: str
    metrics: str


@contextmanager
def serving(
    repository: Path, *options: object, log: IO[str] | None = None, program: tuple[object, ...] = EVALMODE
) -> Iterator[Server]:
    """Run ``evalmode serve``, on free ports unless the options set them; stopped at the end, and killed if it hangs.

    Args:
        repository: The model repository.
        options: Options of the command.
        log: An open file for the server's log; None: this process's stderr.
        program: What Python runs; it takes the arguments of ``evalmode``.
    """
    given = ("--repository", repository, "--port", 0, "--metrics-port", 0, "--lame-duck", 0, "--log-level", "warning")
    command = [sys.executable, *map(str, (*program, "serve", *given, *options))]
    environment = make_environment()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            address, metrics = (f"127.0.0.1:{read_port(process, log)}" for _ in range(2))
            yield Server(process, address, metrics)
        finally:
            process.terminate()
            try:
                process.wait(LONGEST_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def read_port(process: subprocess.Popen[str], log: IO[str] | None = None) -> int:
    """Read a line of a server that starts, and return the port at its end.

    Args:
        process: The server.
        log: The file of its log; None: this process's stderr.

    Raises:
        SystemExit: The server has ended.
    """
    assert process.stdout is not None
    if line := process.stdout.readline():
        return int(line.split()[-1])
    said = Path(log.name).read_text().strip() if log else "see above"
    raise SystemExit(f"the server ended with exit code {process.wait()}: {said}")


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
