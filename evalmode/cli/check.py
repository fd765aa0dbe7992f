"""``evalmode check``: run every check on a file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from evalmode.cli.paths import ExistingPath

MARKS = {True: "[green]passed[/]", False: "[red]failed[/]", None: "[yellow]unknown[/]"}


@click.command()
@click.argument("file", type=ExistingPath(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print a JSON object instead of a table")
def check(file: Path, as_json: bool) -> None:
    """Check FILE, an artifact or any other ONNX image classifier. The exit code is 1 if a check fails."""
    from evalmode.certification.verdicts import check_file

    verdicts = check_file(file)
    failed = [verdict for verdict in verdicts if verdict.passed is False]
    if as_json:
        click.echo(json.dumps({"passed": not failed, "verdicts": [asdict(verdict) for verdict in verdicts]}))
    else:
        table = Table("check", "verdict", "finding", box=None, pad_edge=False)
        for verdict in verdicts:
            finding = verdict.finding if verdict.passed is not False else f"{verdict.reason}: {verdict.finding}"
            table.add_row(verdict.check, MARKS[verdict.passed], finding.replace("[", r"\["))
        Console(highlight=False).print(table)
        click.echo(f"{file}: {'failed' if failed else 'passed'}")
    sys.exit(1 if failed else 0)
