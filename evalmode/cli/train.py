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
    from training.callbacks import Outcome
    from training.datasets import Dataset


@click.command()
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="run folder to write, new or empty")
@dataclass_options(TrainOptions)
@output_options
def train(data: str, out: Path, output: Output, **options: Any) -> None:
    """Train a classifier on DATA.

    DATA is a folder of <class>/<image> files, an .npz, a CIFAR-10 archive or a folder of IDX files as published, or the
    name of a data set such as digits, mnist, fashion-mnist or cifar10.

    In several processes: torchrun --nproc-per-node N -m evalmode train DATA ..., with the same options.
    """
    import_torch()
    search_working_directory()
    display = Display(as_json=output.as_json, quiet=output.quiet)
    try:
        pipeline.train(data, out, TrainOptions(**options), display.callbacks())
    except TrainingStopped:
        if display.dataset:  # only the first process has shown one
            display.print(
                f"\nstopped; the best weights so far are in {out}: evalmode export {out} ...; --resume continues"
            )
        sys.exit(130)
    finally:
        display.close()
    if display.dataset and display.outcome:
        output.finish(_describe(display.dataset, display.outcome, display.report))


def _describe(dataset: Dataset, outcome: Outcome, report: Path | None) -> dict[str, Any]:
    """Describe a training as JSON values."""
    config = outcome.run.config
    return {
        "run": str(outcome.run.folder),
        "data": {
            "source": dataset.source,
            "digest": config.data_digest,
            "images": {name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
            "labels": list(config.labels),
            "pixels": list(config.shape),
            "warnings": list(dataset.warnings),
        },
        "recipe": asdict(config.recipe),
        **asdict(outcome.result),
        "report": str(report) if report else None,
    }
