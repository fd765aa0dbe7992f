"""``evalmode certify``: give an ONNX network of another tool a certificate, and publish it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from evalmode.cli.image_limits import image_limit_options
from evalmode.cli.output import Output, output_options
from evalmode.cli.paths import ExistingPath
from evalmode.cli.publishing import Publishing, publishing_options
from evalmode.cli.values import parse_background, parse_numbers, parse_shape
from evalmode.errors import UsageError
from evalmode.limits import Limits

if TYPE_CHECKING:
    from evalmode.certification.certified import CertifiedClassifier, CertifiedNetwork
    from evalmode.certification.found.found import FoundNetwork

# Those of evalmode.images, which is imported only when the command runs.
MIN_CROP_RATIO = 0.25
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
MODES = ("crop", "squash", "letterbox", "none")
CROP_OFFSETS = ("rounded", "floored")


@dataclass(frozen=True)
class CertifyOptions:
    """The options of ``evalmode certify``, named as on the command line."""

    images: Path | None
    labels: Path | None
    scale: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool | None
    resize: str | None
    crop_ratio: float | None
    interpolation: str | None
    crop_offset: str | None
    antialias: bool | None
    exif_orientation: bool | None
    background: tuple[int, ...] | str | None
    size: tuple[int, ...]
    scores: str
    golden: str
    reference: Path | None
    allow_guessing: bool
    samples: Path | None
    max_image_bytes: int
    max_image_pixels: int


@click.command()
@click.argument("what", type=ExistingPath(path_type=Path))
@click.option(
    "--images",
    type=ExistingPath(path_type=Path),
    help="labelled images to measure accuracy: a folder <label>/<image>, or a CSV or JSONL table of files and labels; "
    "some of them become golden images",
)
@click.option(
    "--labels",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help="text file of labels, one a line, in the order of the network's output",
)
@click.option("--scale", callback=parse_numbers, help="the values that 0 and 255 become: 0,1 or -1,1 or 0,255")
@click.option(
    "--mean",
    callback=parse_numbers,
    help="subtracted then: one number, or one for each channel in the order that the network expects",
)
@click.option("--std", callback=parse_numbers, help="divided by then, likewise")
@click.option(
    "--bgr/--rgb",
    default=None,
    show_default="as the files state, else RGB",
    help="the order of the channels that the network expects",
)
@click.option(
    "--resize",
    type=click.Choice(MODES),
    help="how the network's images were resized: crop is the shorter side, then a crop of the centre",
)
@click.option(
    "--crop-ratio",
    type=click.FloatRange(MIN_CROP_RATIO, 1),
    help="the cropped side divided by the resized one, such as 0.875 for 224 of 256 pixels",
)
@click.option("--crop-offset", type=click.Choice(CROP_OFFSETS), help="whether the offset of the crop is rounded down")
@click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="of the resize; by default bilinear")
@click.option(
    "--antialias/--no-antialias",
    default=None,
    show_default="as the files state, else on",
    help="whether the resize smooths what it makes smaller, as Pillow; not: as OpenCV and tf.image",
)
@click.option(
    "--exif-orientation/--no-exif-orientation",
    default=None,
    show_default="as the files state, else on",
    help="whether photos are turned as their EXIF orientation says",
)
@click.option(
    "--background",
    callback=parse_background,
    metavar="R,G,B|none",
    help="the colour under transparent pixels, or none to ignore transparency; by default white, 255,255,255",
)
@click.option(
    "--size",
    callback=parse_shape,
    metavar="HxW[xC]",
    help="size of the images where the network leaves it open, with the channels where these are open, too",
)
@click.option(
    "--output",
    "scores",
    default="",
    show_default=False,
    help="the output with a value for each label, if there are several",
)
@click.option(
    "--golden",
    type=click.Choice(["images", "synthetic"]),
    default="images",
    help="golden images in the file: some of --images, or synthetic ones",
)
@click.option(
    "--reference",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help=".npz of the answers of the network's own library for --images, to compare: names, probabilities or logits",
)
@click.option("--allow-guessing", is_flag=True, help="publish a network that is no better than guessing")
@click.option(
    "--samples",
    type=ExistingPath(dir_okay=False, path_type=Path),
    help="for a network that is not an image classifier, in place of the options above: .npz of its inputs by name",
)
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="model repository to publish into")
@click.option("--name", required=True, help="name of the model in the repository")
@publishing_options
@image_limit_options(Limits())
@output_options
def certify(what: Path, repository: Path, name: str, publishing: Publishing, output: Output, **options: Any) -> None:
    """Certify WHAT, an ONNX network of another tool or a folder with one, and publish it.

    Labels, size and preprocessing are read from the files of the network, as far as they state them; each option
    takes precedence. For an image classifier, preprocessing and softmax become part of the graph: each pixel x becomes
    (x / 255 * (high - low) + low - mean) / std.
    """
    from evalmode.artifact.publishing import check_publishable
    from evalmode.artifact.sealing import state_credits
    from evalmode.certification.foreign import certify_tensors
    from evalmode.certification.found.facts import STATED
    from evalmode.certification.found.found import find_network
    from evalmode.deployment.layouts import publish_everywhere
    from evalmode.deployment.targets import read_targets

    chosen = CertifyOptions(**options)
    check_publishable(repository, name)
    targets = read_targets(publishing.also, repository)
    certified: CertifiedClassifier | CertifiedNetwork
    if chosen.samples:
        if given := _list_image_options():
            raise UsageError(f"--samples excludes {', '.join(given)}: choose")
        certified = certify_tensors(what, chosen.samples)
        shapes = {one: [str(array.dtype), *array.shape] for one, array in certified.inputs.items()}
        lines = "\n".join(f"input     {one}, {dtype} {tuple(shape)}" for one, (dtype, *shape) in shapes.items())
        facts: dict[str, Any] = {"inputs": shapes}
    else:
        found = find_network(what, _list_stated(chosen))
        if described := found.describe():
            output.say("\n".join(described))
        certified = _certify_classifier(found, chosen)
        lines = _describe(certified)
        facts = {
            "pixels": [*certified.contract.shape],
            "layout": certified.layout,
            "labels": list(certified.labels),
            "quality": asdict(certified.quality),
            "references": [asdict(one) for one in certified.references],
            "found": {name: fact.source for name, fact in found.facts.items() if fact.source != STATED},
        }
    certified = replace(certified, artifact=state_credits(certified.artifact, publishing.author, publishing.license))
    path, layouts = publish_everywhere(repository, name, certified.artifact, targets)
    lines = "\n".join([lines, *(f"note      {note}" for note in certified.notes)])
    lines += f"\npublished {path} ({len(certified.artifact):,} bytes)\ndigest    {certified.digest}"
    output.say("\n".join((lines, *(layout.describe() for layout in layouts))))
    facts |= {"name": name, "version": path.parent.name, "path": str(path), "digest": certified.digest}
    facts |= {"notes": [*certified.notes], "also": [layout.to_json() for layout in layouts]}
    output.finish(facts)


def _list_image_options() -> list[str]:
    """The options for image classifiers that the user gave, such as ``--no-antialias``."""
    context = click.get_current_context()
    names = {one.name for one in fields(CertifyOptions)} - {"samples"}
    return [
        parameter.secondary_opts[0] if context.params[parameter.name] is False else parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    ]


def _certify_classifier(found: FoundNetwork, chosen: CertifyOptions) -> CertifiedClassifier:
    from evalmode.certification.foreign import certify_found
    from evalmode.certification.found.facts import OPTIONS
    from evalmode.certification.preprocessing import ClassifierOptions

    missing = found.list_missing()
    if chosen.images is None or missing not in ([], ["size"]):  # of a size alone, a later error says more
        options = ["--images"] * (chosen.images is None) + [OPTIONS[name] for name in missing]
        resize = "" if found.states_resize else "; --resize, too, unless all images have the network's size"
        raise UsageError(f"{', '.join(options)} missing, or --samples for a network of other tensors{resize}")
    return certify_found(
        found,
        chosen.images,
        ClassifierOptions(
            synthetic_golden=chosen.golden == "synthetic",
            allow_guessing=chosen.allow_guessing,
            limits=Limits(chosen.max_image_bytes, chosen.max_image_pixels),
            reference=chosen.reference,
        ),
        on_warning=lambda warning: click.echo(f"evalmode: {warning}", err=True),
    )


def _list_stated(chosen: CertifyOptions) -> dict[str, Any]:
    """The facts that the options state, by name."""
    from evalmode.certification.found.facts import RESIZE
    from evalmode.images.label_files import read_labels

    names = ("scale", "mean", "std", "bgr", *RESIZE, "exif_orientation", "background")
    stated = {name: getattr(chosen, name) for name in names}
    stated |= {"size": chosen.size[:2], "channels": chosen.size[2] if len(chosen.size) == 3 else None}
    stated |= {"output": chosen.scores, "labels": read_labels(chosen.labels) if chosen.labels else None}
    return {name: value for name, value in stated.items() if value not in (None, (), "")}


def _describe(certified: CertifiedClassifier) -> str:
    from evalmode.certification.reference import MAX_DIFFERENCE

    contract, quality = certified.contract, certified.quality
    least, greatest = quality.interval
    lines = [
        f"pixels    {contract.height}x{contract.width}, {contract.channel_order}, {certified.layout}",
        f"accuracy  {quality.accuracy:.4f} of {quality.images} images ({least:.4f} to {greatest:.4f} with 95% "
        "confidence)",
    ]
    lines += [
        f"reference {one.source}: {one.images} of {quality.images} images agree, probabilities within "
        f"{one.largest_difference:.1e} (limit {MAX_DIFFERENCE:g}), labels equal but for {one.changed} of "
        f"{one.near_ties} near ties"
        for one in certified.references
    ]
    return "\n".join(lines)
