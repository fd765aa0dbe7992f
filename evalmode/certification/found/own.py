"""The manifest of an artifact of evalmode, which is certified again, for example with other images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from evalmode.artifact.manifest import FORMAT_KEY, ClassifierManifest, read_manifest
from evalmode.artifact.tensors import PROBABILITIES
from evalmode.certification.found.facts import RESIZE, Fact, list_pixel_facts
from evalmode.images.contract import PixelContract, Resize

SOURCE = "the manifest of the file, an artifact of evalmode"


def read_own(keys: Mapping[str, str]) -> Iterator[Fact]:
    """Read the manifest of an artifact.

    Args:
        keys: The metadata by key.

    Returns:
        The facts; none if the file is not an image classifier of evalmode. An assumed resize is no fact.

    Raises:
        ArtifactInvalid: The manifest is damaged.
    """
    if FORMAT_KEY not in keys:
        return
    manifest = read_manifest(keys)
    if not isinstance(manifest, ClassifierManifest):
        return
    yield Fact("labels", manifest.labels, SOURCE)
    yield Fact("scale", (0.0, 255.0), SOURCE)
    yield Fact("output", PROBABILITIES, SOURCE)  # its logits are not divided by the temperature
    assumed = RESIZE if _assumes_resize(manifest) else ()
    for name, value in list_pixel_facts(manifest.pixels).items():
        if name not in assumed:
            yield Fact(name, value, SOURCE)


def read_own_contract(keys: Mapping[str, str]) -> PixelContract | None:
    """Read the pixel contract of an artifact, which has more rules than there are facts.

    Args:
        keys: The metadata by key.

    Returns:
        The contract; None if the file is not an image classifier of evalmode, or if its resize was assumed: the facts
        make the contract then.

    Raises:
        ArtifactInvalid: The manifest is damaged.
    """
    manifest = read_manifest(keys) if FORMAT_KEY in keys else None
    if not isinstance(manifest, ClassifierManifest) or _assumes_resize(manifest):
        return None
    return manifest.pixels


def _assumes_resize(manifest: ClassifierManifest) -> bool:
    """Whether the resize of a network of another tool was assumed: it is the default, which no option states.

    A contract in Python may state the default, too; a contract in BGR did.
    """
    pixels = manifest.pixels
    is_default = pixels.resize == Resize() and pixels.channel_order != "BGR"
    return is_default and manifest.properties.get("network") == "adopted"
