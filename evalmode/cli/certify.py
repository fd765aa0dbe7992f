"""``evalmode certify``: give somebody else's ONNX network a certificate."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalmode.cli.image_limits import image_limit_options
from evalmode.cli.output import Output, output_options
from evalmode.cli.paths import ExistingPath
from evalmode.limits import Limits

if TYPE_CHECKING:
    import onnx

NEEDED = ("--images", "--labels", "--scale")  # of a classifier of images


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """HxW as (height, width), HxWxC as (height, width, channels)."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})(?:x([13]))?", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not HxW, such as 224x224, or HxWxC with 1 or 3 channels")
    return tuple(int(side) for side in match.groups() if side)


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """``0.485,0.456,0.406`` as numbers."""
    try:
        return None if value is None else tuple(float(number) for number in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0,1") from error


@click.command()
@click.argument("file", type=ExistingPath(dir_okay=False, path_type=Path))
@click.option(
    "--images",
    type=ExistingPath(file_okay=False, path_type=Path),
    help="folder of <label>/<image> to measure accuracy by; some of them become golden images",
)
@click.option(
    "--labels",
    type=ExistingPath(dir_okay=False, path_type=Path),
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
@click.option(
    "--size",
    callback=parse_size,
    metavar="HxW[xC]",
    help="of the images, where the network leaves it open; with the channels where these are open, too",
)
@click.option("--output", "scores", help="the output that has a value for each label, where several could be it")
@click.option("--golden", type=click.Choice(["images", "synthetic"]), default="images", help="what travels in the file")
@click.option("--allow-guessing", is_flag=True, help="publish a network that is no better than guessing")
@click.option(
    "--samples",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help="instead of all of these, for a network that is no classifier of images: .npz of its inputs by name",
)
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="model repository to publish into")
@click.option("--name", required=True, help="the model's name there")
@image_limit_options(Limits())
@output_options
def certify(
    file: Path,
    images: Path | None,
    labels: Path | None,
    scale: tuple[float, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    bgr: bool,
    size: tuple[int, ...] | None,
    scores: str | None,
    golden: str,
    allow_guessing: bool,
    samples: Path | None,
    repository: Path,
    name: str,
    max_image_bytes: int,
    max_image_pixels: int,
    output: Output,
) -> None:
    """Certify FILE, an ONNX network from any tool, and publish it: it is then served like our own.

    Of a classifier of images, preprocessing and softmax go into the graph: for each pixel x,
    (x / 255 * (high - low) + low - mean) / std.
    """
    from evalmode.artifact.repository import check_publishable, publish
    from evalmode.artifact.sealing import digest_file
    from evalmode.certification.adopt import adopt_tensors, check_loads, read_samples
    from evalmode.certification.foreign import foreign, read_network

    check_publishable(repository, name)
    graph = read_network(file)
    check_loads(graph, file)
    if samples:
        if images or labels or scale:
            raise click.UsageError("--samples is for other networks than --images, --labels and --scale: choose")
        golden_tensors = read_samples(samples, graph)
        with foreign(file):
            artifact = adopt_tensors(graph, golden_tensors)
        lines = "\n".join(f"input     {one}, {array.dtype} {array.shape}" for one, array in golden_tensors.items())
        facts: dict[str, Any] = {
            "inputs": {one: [str(array.dtype), *array.shape] for one, array in golden_tensors.items()}
        }
    else:
        missing = [option for option, given in zip(NEEDED, (images, labels, scale), strict=True) if given is None]
        if images is None or labels is None or scale is None:
            raise click.UsageError(f"{', '.join(missing)} missing, or --samples for a network of other tensors")
        network = Foreign(graph, size, scores)
        wanted = Wanted(scale, mean, std, bgr)
        limits = Limits(max_image_bytes, max_image_pixels)
        with foreign(file):
            artifact, lines, facts = _adopt_images(
                network, (images, limits), labels, wanted, golden == "synthetic", allow_guessing
            )
    path = publish(repository, name, artifact)
    digest = digest_file(artifact)
    output.say(f"{lines}\npublished {path} ({len(artifact):,} bytes)\ndigest    {digest}")
    output.finish({"name": name, "version": path.parent.name, "path": str(path), "digest": digest, **facts})


@dataclass(frozen=True)
class Foreign:
    """A network, and what its user says of it where it leaves that open.

    Attributes:
        graph: with its weights in it.
        size: of the images: height, width, channels or not.
        scores: the name of the output that has a value for each label.
    """

    graph: onnx.ModelProto
    size: tuple[int, ...] | None
    scores: str | None


@dataclass(frozen=True)
class Wanted:
    """What the user says that the network wants done to pixels."""

    scale: tuple[float, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    bgr: bool

    def check(self, channels: int, takes_bytes: bool) -> None:
        """Hold it against what the network takes.

        Args:
            channels: of its images.
            takes_bytes: whether they are uint8.

        Raises:
            UsageError: it does not fit.
        """
        from evalmode.errors import UsageError

        for option, numbers in (("--mean", self.mean), ("--std", self.std)):
            if numbers is not None and len(numbers) not in (1, channels):
                expected = "1" if channels == 1 else f"1 or {channels}"
                raise UsageError(f"{option} has {len(numbers)} numbers: expected {expected}")
        if self.bgr and channels == 1:
            raise UsageError("--bgr: the network takes grey images, which have no order of colours")
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"--std {_show(self.std)}: expected numbers above 0")
        if takes_bytes and (self.scale != (0, 255) or self.mean or self.std):
            raise UsageError("the network takes uint8, pixels as they are: --scale 0,255 without --mean and --std")


def _show(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{one:g}" for one in numbers)


def _adopt_images(
    network: Foreign,
    images: tuple[Path, Limits],
    labels: Path,
    wanted: Wanted,
    synthetic: bool,
    allow_guessing: bool,
) -> tuple[bytes, str, dict[str, Any]]:
    """The artifact of a classifier of images, and what to say of it, in lines and as JSON values.

    Args:
        network: as it came.
        images: the folder, and how large one may be.
        labels: the file of their names.
        wanted: what is done to pixels.
        synthetic: whether golden images are drawn.
        allow_guessing: whether it may be no better than that.
    """
    from evalmode.certification.adopt import adopt, runs_on, takes_bytes
    from evalmode.certification.images import read_labelled
    from evalmode.certification.wrap import Preprocessing, find_scores, read_input
    from evalmode.errors import GoldenMismatch
    from evalmode.images.label_files import read_labels

    if len(wanted.scale) != 2 or wanted.scale[0] >= wanted.scale[1]:
        raise click.UsageError(f"--scale {_show(wanted.scale)} is not LOW,HIGH such as -1,1")
    names = read_labels(labels)
    entry, contract, layout = read_input(network.graph, network.size, partial(runs_on, network.graph))
    wanted.check(contract.channels, takes_bytes(network.graph))
    (low, high), mean, std = wanted.scale, wanted.mean or (0.0,), wanted.std or (1.0,)
    width = max(len(mean), len(std))
    pairs = list(zip(mean * (width // len(mean)), std * (width // len(std)), strict=True))
    preprocessing = Preprocessing(
        contract,
        layout,
        wanted.bgr,
        scale=tuple((high - low) / 255 / deviation for _, deviation in pairs),
        shift=tuple((low - average) / deviation for average, deviation in pairs),
    )
    scores = find_scores(network.graph, len(names), network.scores)
    folder, limits = images
    labelled = read_labelled(folder, names, contract, limits)
    for warning in labelled.warnings:
        click.echo(f"evalmode: {warning}", err=True)
    artifact, quality = adopt(network.graph, (entry, scores), preprocessing, names, labelled, synthetic)
    least, greatest = quality.interval
    if least <= 1 / len(names) and not allow_guessing:
        raise GoldenMismatch(
            f"accuracy {quality.accuracy:.4f} of {quality.images} images is no better than guessing among {len(names)} "
            "labels: are --labels, --scale, --mean, --std and --bgr right? If so: --allow-guessing"
        )
    lines = (
        f"pixels    {contract.height}x{contract.width}, {'RGB' if contract.channels == 3 else 'grey'}, {layout}\n"
        f"accuracy  {quality.accuracy:.4f} of {quality.images} images ({least:.4f} to {greatest:.4f} with 95% "
        "confidence)"
    )
    facts = {"pixels": [*contract.shape], "layout": layout, "labels": list(names)}
    return artifact, lines, {**facts, "quality": asdict(quality)}
