"""The manifest of an artifact of evalmode, which is certified again, for example with other images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from evalmode.artifact.manifest import FORMAT_KEY, ClassifierManifest, read_manifest
from evalmode.artifact.tensors import PROBABILITIES
from evalmode.certification.found.facts import Fact, list_pixel_facts
from evalmode.images.contract import PixelContract

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
    yield Fact("labels", manifest.labels, SOURCE)
    yield Fact("scale", (0.0, 255.0), SOURCE)
    yield Fact("output", PROBABILITIES, SOURCE)  # its logits are not divided by the temperature
    for name, value in list_pixel_facts(manifest.pixels).items():
        yield Fact(name, value, SOURCE)


def read_own_contract(keys: Mapping[str, str]) -> PixelContract | None:
    """Read the pixel contract of an artifact, which has more rules than there are facts.

    Args:
        keys: The metadata by key.

    Returns:
        The contract; None if the file is not an image classifier of evalmode.

    Raises:
        ArtifactInvalid: The manifest is damaged.
    """
    manifest = read_manifest(keys) if FORMAT_KEY in keys else None
    return manifest.pixels if isinstance(manifest, ClassifierManifest) else None
