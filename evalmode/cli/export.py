"""``evalmode export``: from a run to a published artifact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from evalmode.cli.console import (
    cache_option,
    console,
    find_own_networks,
    import_torch,
    reload_data,
    set_up_consoles,
)
from evalmode.cli.output import Output, output_options
from evalmode.cli.paths import ExistingPath


@click.command()
@click.argument("run", type=ExistingPath(file_okay=False, path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="model repository to publish into")
@click.option("--name", required=True, help="the model's name there")
@click.option("--mirrored", is_flag=True, help="answer the mean over the image and its mirror image: twice the cost")
@click.option(
    "--golden",
    type=click.Choice(["validation", "synthetic"]),
    default="validation",
    help="images that travel in the file to prove it: some of the validation images, or drawn ones for private data",
)
@click.option("--quantize", type=click.Choice(["int8"]), help="also publish NAME-int8, if it is faster and as accurate")
@click.option("--data", help="where the run's data lies now, if it moved")
@cache_option
@output_options
def export(
    run: Path,
    repository: Path,
    name: str,
    mirrored: bool,
    golden: str,
    quantize: str | None,
    data: str | None,
    cache: Path,
    output: Output,
) -> None:
    """Export RUN in eval mode and publish it as repository/NAME/<next version>/model.onnx.

    Refused unless ONNX Runtime agrees with torch on the whole test set.
    """
    import_torch()
    from evalmode.artifact.repository import check_publishable, publish
    from training.export import export_run, quantize_artifact
    from training.run import Run

    set_up_consoles(output)
    for one in (name, f"{name}-{quantize}") if quantize else (name,):
        check_publishable(repository, one)
    find_own_networks()
    opened = Run.open(run)
    dataset = reload_data(opened, data, cache)
    said: list[str] = []
    artifact, agreement, quality = export_run(opened, dataset, mirrored, golden == "synthetic", said.append)
    path = publish(repository, name, artifact)
    published = _describe(path, artifact)
    (least, greatest), (before, after) = quality.interval, quality.calibration_error
    near_ties = f"labels equal but for {agreement.changed} of {agreement.near_ties} near ties"
    calibrated = f"calibration error {before:.4f} on test images"
    if quality.temperature == 1.0:
        calibrated += f"; {said[0]}"
    else:
        calibrated += f", {after:.4f} with the temperature fitted on validation images, {quality.temperature:.3f}"
    console.print(
        f"agreement onnxruntime and torch on {agreement.images} test images: logits within "
        f"{agreement.max_logit_difference:.1e} (limit {agreement.tolerance:.1e}), {near_ties}\n"
        f"accuracy  {quality.accuracy:.4f} ({least:.4f} to {greatest:.4f} with 95% confidence)\n"
        f"{calibrated}\n"
        f"published {path} ({len(artifact):,} bytes)\n"
        f"digest    {published['digest']}"
    )
    facts = {**published, "agreement": asdict(agreement), "quality": asdict(quality)}
    if quantize:
        variant, told = quantize_artifact(artifact, dataset)
        path = publish(repository, f"{name}-{quantize}", variant)
        facts["quantized"] = published = _describe(path, variant)
        console.print(
            f"{quantize}      {told}\npublished {path} ({len(variant):,} bytes)\ndigest    {published['digest']}"
        )
    output.finish(facts)


def _describe(path: Path, artifact: bytes) -> dict[str, object]:
    """What was published, as JSON values."""
    from evalmode.artifact.sealing import digest_file

    name, version = path.parts[-3:-1]
    return {"name": name, "version": version, "path": str(path), "digest": digest_file(artifact)}
