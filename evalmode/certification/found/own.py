"""The manifest of an artifact of evalmode, which is certified again, for example with other images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from evalmode.artifact.manifest import FORMAT_KEY, ClassifierManifest, read_manifest
from evalmode.artifact.tensors import PROBABILITIES
from evalmode.certification.found.facts import Fact
from evalmode.images.contract import PixelContract, Resize

SOURCE = "the manifest of the file, an artifact of evalmode"


def read_own(keys: Mapping[str, str]) -> Iterator[Fact]:
    """Read the manifest of an artifact.

    Args:
        keys: The metadata by key.

    Returns:
        The facts; none if the file is not an image classifier of evalmode.

    Raises:
        ArtifactInvalid: The manifest is damaged.
    """
    if FORMAT_KEY not in keys:
        return
    manifest = read_manifest(keys)
    if not isinstance(manifest, ClassifierManifest):
        return
    contract = manifest.pixels
    yield Fact("labels", manifest.labels, SOURCE)
    yield Fact("size", (contract.height, contract.width), SOURCE)
    yield Fact("channels", contract.channels, SOURCE)
    yield Fact("scale", (0.0, 255.0), SOURCE)
    yield Fact("output", PROBABILITIES, SOURCE)  # its logits are not divided by the temperature
    if contract.channels == 3:
        yield Fact("bgr", contract.channel_order == "BGR", SOURCE)
    yield from _read_resize(contract)


def _read_resize(contract: PixelContract) -> Iterator[Fact]:
    """The rules of the resize, unless they are those of every network whose files state none."""
    resize = contract.resize
    stated = Resize(
        resize.crop_ratio,
        resize.interpolation,
        jpeg_scaling=False,
        mode=resize.mode,
        keeps_exact_size=False,
        crop_offset=resize.crop_offset,
    )
    if contract == _rebuild(contract, Resize()):
        return
    if contract != _rebuild(contract, stated):
        problem = f"{SOURCE}, has rules that no option of certify states: {contract.describe()}"
        yield Fact("resize", None, SOURCE, problem)
        return
    for name, value in (("resize", resize.mode), ("crop_ratio", resize.crop_ratio)):
        yield Fact(name, value, SOURCE)
    yield Fact("interpolation", resize.interpolation, SOURCE)
    yield Fact("crop_offset", resize.crop_offset, SOURCE)


def _rebuild(contract: PixelContract, resize: Resize) -> PixelContract:
    """The contract of the same pixels with a resize, and otherwise the rules that certify has."""
    return PixelContract(contract.height, contract.width, contract.channels, resize, contract.channel_order)
