"""``evalmode certify``: give somebody else's ONNX network a certificate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import onnx

NEEDED = ("--images", "--labels", "--scale")  # of a classifier of images


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """HxW as (height, width)."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not HxW, such as 224x224")
    return int(match[1]), int(match[2])


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """``0.485,0.456,0.406`` as numbers."""
    try:
        return None if value is None else tuple(float(number) for number in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0,1") from error


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="folder of <label>/<image> to measure accuracy by; some of them become golden images",
)
@click.option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="text file, a label a line in the order of the network's output",
)
@click.option("--scale", callback=parse_numbers, help="what 0 and 255 become: 0,1 or -1,1 or 0,255")
@click.option(
    "--mean",
    callback=parse_numbers,
    help="then subtracted: one number, or one a channel in the order that the network wants",
)
@click.option("--std", callback=parse_numbers, help="then divided by, likewise")
@click.option("--bgr", is_flag=True, help="the network wants blue first")
@click.option("--size", callback=parse_size, metavar="HxW", help="of the images, where the network leaves it open")
@click.option("--golden", type=click.Choice(["images", "synthetic"]), default="images", help="what travels in the file")
@click.option("--allow-guessing", is_flag=True, help="publish a network that is no better than guessing")
@click.option(
    "--samples",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="instead of all of these, for a network that is no classifier of images: .npz of its inputs by name",
)
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="model repository to publish into")
@click.option("--name", required=True, help="the model's name there")
def certify(
    file: Path,
    images: Path | None,
    labels: Path | None,
    scale: tuple[float, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    bgr: bool,
    size: tuple[int, int] | None,
    golden: str,
    allow_guessing: bool,
    samples: Path | None,
    repository: Path,
    name: str,
) -> None:
    """Certify FILE, an ONNX network from any tool, and publish it: it is then served like our own.

    Of a classifier of images, preprocessing and softmax go into the graph: for each pixel x,
    (x / 255 * (high - low) + low - mean) / std.
    """
    from serving.artifact import digest_file
    from serving.proof.adopt import adopt_tensors, read_samples
    from serving.proof.wrap import read_network
    from serving.repository import check_name, publish

    check_name(name)
    graph = read_network(file)
    if samples:
        if images or labels or scale:
            raise click.UsageError("--samples is for other networks than --images, --labels and --scale: choose")
        golden_tensors = read_samples(samples, graph)
        artifact = adopt_tensors(graph, golden_tensors)
        told = "\n".join(f"input     {one}, {array.dtype} {array.shape}" for one, array in golden_tensors.items())
    else:
        missing = [option for option, given in zip(NEEDED, (images, labels, scale), strict=True) if given is None]
        if images is None or labels is None or scale is None:
            raise click.UsageError(f"{', '.join(missing)} missing, or --samples for a network of other tensors")
        synthetic = golden == "synthetic"
        artifact, told = _adopt_images(graph, images, labels, scale, mean, std, bgr, size, synthetic, allow_guessing)
    path = publish(repository, name, artifact)
    click.echo(f"{told}\npublished {path} ({len(artifact):,} bytes)\ndigest    {digest_file(artifact)}")


def _adopt_images(
    graph: onnx.ModelProto,
    images: Path,
    labels: Path,
    scale: tuple[float, ...],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    bgr: bool,
    size: tuple[int, int] | None,
    synthetic: bool,
    allow_guessing: bool,
) -> tuple[bytes, str]:
    """The artifact of a classifier of images, and what to say of it."""
    from serving.errors import GoldenMismatch, UsageError
    from serving.proof.adopt import adopt
    from serving.proof.images import read_labelled
    from serving.proof.wrap import Preprocessing, find_scores, read_input

    if len(scale) != 2 or scale[0] >= scale[1]:
        raise click.UsageError(f"--scale {','.join(f'{one:g}' for one in scale)} is not LOW,HIGH such as -1,1")
    names = tuple(line.strip() for line in labels.read_text().splitlines() if line.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(
            f"{labels} names {len(names)} labels, {len(set(names))} of them different: one a line is wanted"
        )
    entry, contract, layout = read_input(graph, size)
    for option, numbers in (("--mean", mean), ("--std", std)):
        if numbers is not None and len(numbers) not in (1, contract.channels):
            raise UsageError(f"{option} has {len(numbers)} numbers: 1 or {contract.channels} are wanted")
    if bgr and contract.channels == 1:
        raise UsageError("--bgr: the network takes grey images, which have no order of colours")
    if std is not None and min(std) <= 0:
        raise UsageError(f"--std {','.join(f'{one:g}' for one in std)}: numbers above 0 are wanted")
    (low, high), mean, std = scale, mean or (0.0,), std or (1.0,)
    width = max(len(mean), len(std))
    pairs = list(zip(mean * (width // len(mean)), std * (width // len(std)), strict=True))
    preprocessing = Preprocessing(
        contract,
        layout,
        bgr,
        scale=tuple((high - low) / 255 / deviation for _, deviation in pairs),
        shift=tuple((low - average) / deviation for average, deviation in pairs),
    )
    labelled = read_labelled(images, names, contract)
    scores = find_scores(graph, len(names))
    artifact, quality = adopt(graph, (entry, scores), preprocessing, names, labelled, synthetic)
    if quality.interval[0] <= 1 / len(names) and not allow_guessing:
        raise GoldenMismatch(
            f"accuracy {quality.accuracy:.4f} of {quality.images} images is no better than guessing among {len(names)} "
            "labels: are --labels, --scale, --mean, --std and --bgr right? If so: --allow-guessing"
        )
    least, greatest = quality.interval
    return artifact, (
        f"pixels    {contract.height}x{contract.width}, {'RGB' if contract.channels == 3 else 'grey'}, {layout}\n"
        f"accuracy  {quality.accuracy:.4f} of {quality.images} images ({least:.4f} to {greatest:.4f} with 95% "
        "confidence)"
    )
