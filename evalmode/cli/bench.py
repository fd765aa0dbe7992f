"""``evalmode bench``: how fast a server answers, what a request costs, how near that is to ONNX Runtime alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from evalmode.cli.paths import ExistingPath
from evalmode.client import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from evalmode.bench.load import Measured

COLUMNS = ("load", "answers/s", "p50 ms", "p95 ms", "p99 ms", "client us", "server us", "of raw")


def parse_counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """``1,8,32`` as numbers."""
    try:
        counts = tuple(int(count) for count in value.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 1,8,32")
    return counts


@click.command()
@click.argument("address", default=DEFAULT_ADDRESS)
@click.option("--model", default="", help="the model's name, where the server holds several")
@click.option(
    "--image",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help="send this encoded image; by default raw pixels of the model's size",
)
@click.option("--in-flight", callback=parse_counts, default="1,8,32", help="closed loop: so many callers at a time")
@click.option("--rate", type=click.FloatRange(0.1), help="open loop instead: so many requests a second")
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, help="for each load")
@click.option("--timeout", type=click.FloatRange(0.001), default=10.0, help="deadline of one call, seconds")
@click.option(
    "--file",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help="the model.onnx that is served: also measures ONNX Runtime alone on these cores",
)
@click.option("--json", "as_json", is_flag=True, help="print a JSON object instead of a table")
def bench(
    address: str,
    model: str,
    image: Path | None,
    in_flight: tuple[int, ...],
    rate: float | None,
    seconds: float,
    timeout: float,
    file: Path | None,
    as_json: bool,
) -> None:
    """Load the server at ADDRESS with one prepared request, and time its answers.

    The load generator is this process: it shares the cores with a server on the same machine.
    """
    from evalmode.bench import load, raw, usage
    from evalmode.client import Client
    from evalmode.errors import UsageError
    from evalmode.images.pixels import PixelContract
    from evalmode.runtime.cpus import count_cpus

    with Client(address, timeout_s=timeout) as client:
        served = client.get_model(model)
    contract = PixelContract(served.pixels.height, served.pixels.width, served.pixels.channels)
    fastest = None
    if file:
        _check_same(file, served.digest)
        fastest = raw.measure_raw(file.read_bytes(), contract, count_cpus(), seconds=1.0)[0]
    request = _make_request(image, contract, served.model)
    server = usage.find_server(address)
    rows: list[dict[str, Any]] = []

    def measure(name: str, run: Any) -> None:
        before = usage.cpu_seconds(server) if server else 0.0
        measured: Measured = run()
        row = {"load": name, **load.describe(measured)}
        spent = usage.cpu_seconds(server) - before if server else 0.0
        row["server_cpu_us"] = round(spent / max(1, measured.requests) * 1e6) if server else None
        row["of_raw"] = round(measured.rate / fastest.rate, 3) if fastest else None
        rows.append(row)

    if rate:
        measure(f"{rate:g}/s", lambda: load.at_rate(address, request, rate, seconds, timeout))
    else:
        for count in in_flight:
            measure(f"{count} in flight", lambda c=count: load.in_flight(address, request, c, seconds, timeout))
    told = {"address": address, "model": f"{served.model}/{served.version}", "raw": fastest and vars(fastest)}
    if as_json:
        click.echo(json.dumps({**told, "loads": rows}))
    else:
        _print(rows, told)
    failed = sum(count for row in rows for outcome, count in row["outcomes"].items() if outcome != load.OK)
    if failed:
        raise UsageError(f"{failed} requests were not answered, or answered wrong: see the outcomes")


def _check_same(file: Path, digest: str) -> None:
    import hashlib

    from evalmode.errors import UsageError

    actual = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    if actual != digest:
        raise UsageError(f"{file} is {actual}, the server answers with {digest}: give the file that is served")


def _make_request(image: Path | None, contract: Any, model: str) -> bytes:
    import numpy as np

    from evalmode.wire import classifier_pb2 as wire

    if image:
        return wire.PredictRequest(image=image.read_bytes(), model=model, top_k=1).SerializeToString()
    drawn = np.random.default_rng(0).integers(0, 256, contract.shape).astype(np.uint8)
    pixels = wire.Pixels(data=drawn.tobytes(), height=contract.height, width=contract.width, channels=contract.channels)
    return wire.PredictRequest(pixels=pixels, model=model, top_k=1).SerializeToString()


def _show(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.2f}"


def _print(rows: list[dict[str, Any]], told: dict[str, Any]) -> None:
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows:
        cells = [row["load"], f"{row['rate']:,.0f}", *(_show(row[f"p{share}_ms"]) for share in (50, 95, 99))]
        cells += [f"{row[name]:,}" if row[name] is not None else "" for name in ("client_cpu_us", "server_cpu_us")]
        table.add_row(*cells, f"{row['of_raw']:.2f}" if row["of_raw"] else "")
    console = Console(highlight=False)
    console.print(f"{told['model']} at {told['address']}; us: processor time of a request", soft_wrap=True)
    console.print(table)
    if raw := told["raw"]:
        console.print(
            f"raw: ONNX Runtime alone {raw['rate']:,.0f} images/s, {raw['sessions']} at a time on {raw['threads']} "
            f"threads each, batches of {raw['batch']}",
            soft_wrap=True,
        )
    for row in rows:
        if set(row["outcomes"]) - {"OK"}:
            console.print(f"{row['load']}: {row['outcomes']}")
