"""What certification assumes about the images, where neither a file nor the user states it.

Only what matters for the images at hand is said: an orientation that no image has makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from evalmode.certification.found.facts import STATED
from evalmode.certification.found.found import FoundNetwork
from evalmode.errors import UsageError
from evalmode.images.contract import Resize
from evalmode.images.formats import FORMATS
from evalmode.images.headers import Header, read_header
from evalmode.images.orientation import SIDEWAYS
from evalmode.images.pixels import CODECS, PixelContract, probe_header
from evalmode.images.resizing import Size
from evalmode.images.sampling import SAMPLED
from evalmode.limits import Limits


@dataclass(frozen=True)
class Survey:
    """What the headers of images say.

    Attributes:
        paths: The images.
        sizes: (width, height) of each image; upright, unless the orientation is not applied.
        turned: The number of images with an EXIF orientation.
        transparent: The number of images that may have transparent pixels.
    """

    paths: tuple[Path, ...]
    sizes: tuple[Size, ...]
    turned: int
    transparent: int


def survey_images(paths: Sequence[Path], limits: Limits, exif_orientation: bool = True) -> Survey:
    """Read the headers of images that could be decoded.

    Args:
        paths: The images.
        limits: How large they may be.
        exif_orientation: Whether their EXIF orientation is applied.

    Raises:
        ImageError: A header cannot be read.
        OSError: A file cannot be read.
    """
    sizes, turned, transparent = [], 0, 0
    for path in paths:
        header = read_header(path.read_bytes(), limits, FORMATS)
        size = probe_header(header).size
        orientation, is_transparent = _look_at(header)
        sizes.append(size if exif_orientation or orientation not in SIDEWAYS else size[::-1])
        turned += orientation != 1
        transparent += is_transparent
    return Survey(tuple(paths), tuple(sizes), turned, transparent)


def check_resize(found: FoundNetwork, survey: Survey, wanted: Size) -> None:
    """Check that a resize is stated if there is anything to resize: no default is right for most networks.

    Args:
        found: The network and the facts about it.
        survey: What the headers of the images say.
        wanted: (width, height) that the network takes.

    Raises:
        UsageError: An image has another size, and no source states how it is resized.
    """
    others = [row for row, size in enumerate(survey.sizes) if size != wanted]
    if others and not found.states_resize:
        width, height = survey.sizes[others[0]]
        raise UsageError(
            f"{len(others)} of {len(survey.sizes)} images are not {wanted[0]}x{wanted[1]} (width x height), such as "
            f"{survey.paths[others[0]]} ({width}x{height}), and no file states how training resized them: state "
            "--resize and --interpolation, in Python contract=PixelContract(...)"
        )


def list_assumed(found: FoundNetwork, survey: Survey, contract: PixelContract) -> tuple[str, ...]:
    """A sentence for each rule that no source states, and that a default fills in.

    Args:
        found: The network and the facts about it.
        survey: What the headers of the images say.
        contract: The pixels that the images were decoded to.
    """
    resize = [] if found.contract else [_describe_resize(found), _describe_antialias(found, survey, contract)]
    return (*filter(None, resize), *list_read(found, survey))


def list_read(found: FoundNetwork, survey: Survey) -> tuple[str, ...]:
    """A sentence for each rule of reading images, before they are resized, that matters and that no source states.

    Args:
        found: The network and the facts about it.
        survey: What the headers of the images say.
    """
    if found.contract is not None:
        return ()
    notes = []
    if survey.turned and "exif_orientation" not in found.facts:
        notes.append(
            f"{survey.turned} of {len(survey.sizes)} images have an EXIF orientation: assumed that training applied "
            "it; if not, --no-exif-orientation"
        )
    if survey.transparent and "background" not in found.facts:
        notes.append(
            f"{survey.transparent} of {len(survey.sizes)} images may have transparent pixels: assumed white under "
            "them; another colour by --background, none if training ignored it"
        )
    return tuple(notes)


def _describe_resize(found: FoundNetwork) -> str | None:
    """What is assumed about the resize, unless it is stated with its interpolation."""
    usual = Resize()
    if not found.states_resize:
        chosen = found.facts["interpolation"].value if "interpolation" in found.facts else usual.interpolation
        return (
            f"no file states how images are resized: assumed {usual.mode} and {chosen}; --resize and --interpolation "
            "state another way"
        )
    if "interpolation" not in found.facts and found.facts["resize"].value != "none":
        return f"no file states the interpolation: assumed {usual.interpolation}; --interpolation states another one"
    return None


def _describe_antialias(found: FoundNetwork, survey: Survey, contract: PixelContract) -> str | None:
    """What is assumed about antialiasing, if images become smaller in a way that is not that of a file's library."""
    resize = contract.resize
    is_stated = "antialias" in found.facts or not found.states_resize or found.facts["resize"].source != STATED
    if is_stated or resize.interpolation not in SAMPLED:
        return None
    if not any(_becomes_smaller(size, contract) for size in survey.sizes):
        return None
    libraries = "tf.image, OpenCV and tensors of torchvision"
    return f"no file states antialiasing: assumed antialiased; --no-antialias for {libraries}"


def _becomes_smaller(size: Size, contract: PixelContract) -> bool:
    """Whether the resize makes a side of an image smaller. A crop resizes both sides by the same factor."""
    target = contract.resize.find_target(size, contract.size)
    smaller = [side > resized for side, resized in zip(size, target, strict=True)]
    return all(smaller) if contract.resize.mode == "crop" else any(smaller)


def _look_at(header: Header) -> tuple[int, bool]:
    """The EXIF orientation of an image, and whether it may have transparent pixels."""
    if header.components:  # a JPEG
        return header.orientation, False
    codec = CODECS[header.format].codec
    with codec.open(BytesIO(header.cut())) as opened:
        return codec.find_orientation(header, opened), opened.has_transparency_data
