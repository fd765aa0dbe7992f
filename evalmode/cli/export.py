"""``evalmode export``: from a run to a published artifact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalmode.cli.dataclass_options import dataclass_options
from evalmode.cli.output import Output, output_options
from evalmode.cli.own_networks import search_working_directory
from evalmode.cli.paths import ExistingPath
from evalmode.display import Display
from training import pipeline
from training.options import ExportOptions
from training.torch_runtime import import_torch

if TYPE_CHECKING:
    from training.publish import PublishedFile


@click.command()
@click.argument("run", type=ExistingPath(file_okay=False, path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="model repository to publish into")
@click.option("--name", required=True, help="name of the model in the repository")
@dataclass_options(ExportOptions)
@output_options
def export(run: Path, repository: Path, name: str, output: Output, **options: Any) -> None:
    """Export RUN in eval mode and publish it as repository/NAME/<next version>/model.onnx.

    The export is refused unless ONNX Runtime agrees with torch on the whole test set.
    """
    import_torch()
    search_working_directory()
    display = Display(as_json=output.as_json, quiet=output.quiet)
    try:
        artifact = pipeline.export(run, repository, name, ExportOptions(**options), display.callbacks())
    finally:
        display.close()
    facts = {**_describe(artifact), "agreement": asdict(artifact.agreement), "quality": asdict(artifact.quality)}
    for variant in artifact.variants:
        facts["quantized"] = _describe(variant)
    output.finish(facts)


def _describe(published: PublishedFile) -> dict[str, Any]:
    """Describe a published file as JSON values."""
    return {
        "name": published.name,
        "version": published.version,
        "path": str(published.path),
        "digest": published.digest,
        "also": [layout.to_json() for layout in published.layouts],
    }
