"""``evalmode report``: writes the report of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evalmode.cli.dataclass_options import dataclass_options
from evalmode.cli.output import Output, output_options
from evalmode.cli.own_networks import search_working_directory
from evalmode.cli.paths import ExistingPath
from evalmode.display import Display
from training import pipeline
from training.options import ReportOptions
from training.torch_runtime import import_torch


@click.command()
@click.argument("run", type=ExistingPath(file_okay=False, path_type=Path))
@dataclass_options(ReportOptions)
@output_options
def report(run: Path, output: Output, **options: Any) -> None:
    """Write RUN/report.html: what the network has learned, its mistakes, and the inputs of its layers."""
    import_torch()
    search_working_directory()
    display = Display(as_json=output.as_json, quiet=output.quiet)
    try:
        path = pipeline.report(run, ReportOptions(**options), display.callbacks())
    finally:
        display.close()
    output.finish({"report": str(path)})
