"""``evalmode train``: from labelled images to a run."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalmode.cli.dataclass_options import dataclass_options
from evalmode.cli.output import Output, output_options
from evalmode.cli.own_networks import search_working_directory
from evalmode.display import Display
from training import pipeline
from training.interrupts import TrainingStopped
from training.options import TrainOptions
from training.torch_runtime import import_torch

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.run import Run


@click.command()
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="run folder to write, new or empty")
@dataclass_options(TrainOptions)
@output_options
def train(data: str, out: Path, output: Output, **options: Any) -> None:
    """Train a classifier on DATA.

    DATA is a folder of <label>/<image> files, an .npz, a CIFAR-10 archive or a folder of IDX files as published, or the
    name of a data set such as digits, mnist, fashion-mnist or cifar10.

    In several processes: torchrun --nproc-per-node N -m evalmode train DATA ..., with the same options.
    """
    import_torch()
    search_working_directory()
    display = Display(as_json=output.as_json, quiet=output.quiet)
    try:
        run = pipeline.train(data, out, TrainOptions(**options), display.callbacks())
    except TrainingStopped as stopped:
        if display.dataset:  # only the first process has shown one
            display.print(f"\n{stopped}; --resume continues")
        sys.exit(130)
    finally:
        display.close()
    if display.dataset and display.outcome:
        report = run.folder / display.report.name if display.report else None
        output.finish(_describe(display.dataset, run, report))


def _describe(dataset: Dataset, run: Run, report: Path | None) -> dict[str, Any]:
    """Describe a training as JSON values; of several networks that were compared, the chosen one."""
    config = run.config
    return {
        "run": str(run.folder),
        "data": {
            "source": dataset.source,
            "digest": config.data_digest,
            "images": {name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
            "labels": list(config.labels),
            "pixels": list(config.shape),
            "warnings": list(dataset.warnings),
        },
        "recipe": asdict(config.recipe),
        **asdict(run.read_result()),
        "report": str(report) if report else None,
    }
