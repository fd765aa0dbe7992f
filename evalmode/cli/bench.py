"""``evalmode bench``: measure a server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from evalmode.cli.paths import ExistingPath
from evalmode.client import DEFAULT_ADDRESS
from evalmode.errors import UsageError

if TYPE_CHECKING:
    from evalmode.bench.measure import BenchResult

COLUMNS = ("load", "answers/s", "p50 ms", "p95 ms", "p99 ms", "client us", "server us", "of raw")


def parse_counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Parse a list of numbers.

    Args:
        ctx: The command.
        param: The option.
        value: Such as "1,8,32".

    Returns:
        The numbers, each at least 1.

    Raises:
        click.BadParameter: The text is something else.
    """
    try:
        counts = tuple(int(count) for count in value.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 1,8,32")
    return counts


@click.command()
@click.argument("address", default=DEFAULT_ADDRESS)
@click.option("--model", default="", show_default=False, help="name of the model, if the server has several")
@click.option(
    "--image",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help="encoded image to send; by default raw pixels of the model's size",
)
@click.option("--in-flight", callback=parse_counts, default="1,8,32", help="closed loop: numbers of concurrent callers")
@click.option("--rate", type=click.FloatRange(0.1), help="open loop instead: requests per second")
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, help="duration of each load")
@click.option("--timeout", type=click.FloatRange(0.001), default=10.0, help="deadline of a call, seconds")
@click.option(
    "--file",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help="the model.onnx that is served: also measures ONNX Runtime without a server on these cores",
)
@click.option("--json", "as_json", is_flag=True, help="print a JSON object instead of a table")
def bench(address: str, as_json: bool, **options: Any) -> None:
    """Send one prepared request to the server at ADDRESS again and again, and measure latency and throughput.

    The load generator is this process: on the server's machine it competes for the same cores.
    """
    from evalmode.bench.measure import BenchOptions, measure_server

    result = measure_server(address, BenchOptions(**options))
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        _print(result)
    if result.failed:
        raise UsageError(f"{result.failed} requests were not answered, or answered wrong: see the outcomes")


def _show(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.2f}"


def _print(result: BenchResult) -> None:
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in result.loads:
        cells = [row["load"], f"{row['rate']:,.0f}", *(_show(row[f"p{share}_ms"]) for share in (50, 95, 99))]
        cells += [f"{row[name]:,}" if row[name] is not None else "" for name in ("client_cpu_us", "server_cpu_us")]
        table.add_row(*cells, f"{row['of_raw']:.2f}" if row["of_raw"] else "")
    console = Console(highlight=False)
    console.print(f"{result.model} at {result.address}; us: processor time of a request", soft_wrap=True)
    console.print(table)
    if raw := result.raw:
        console.print(
            f"raw: ONNX Runtime without a server {raw.rate:,.0f} images/s, {raw.sessions} calls at a time on "
            f"{raw.threads} threads each, batches of {raw.batch}",
            soft_wrap=True,
        )
    for row in result.loads:
        if set(row["outcomes"]) - {"OK"}:
            console.print(f"{row['load']}: {row['outcomes']}")
