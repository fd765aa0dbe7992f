"""The manifest: the metadata inside ``model.onnx``, written at export and read at load.

An artifact holds an image classifier or a network of tensors, and each has a manifest type of its own; both have the
same interface.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from evalmode.artifact.certificate import ClassifierCertificate, TensorCertificate
from evalmode.artifact.pixel_facts import read_contract, write_contract
from evalmode.artifact.standard_keys import check_standard, describe_classifier, describe_credits
from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES, Run, Tensors
from evalmode.errors import ArtifactInvalid
from evalmode.images.pixels import PixelContract, Resize
from evalmode.limits import MIB

FORMAT_VERSION = 4
PREFIX = "evalmode."
FORMAT_KEY = PREFIX + "format_version"
DIGEST = PREFIX + "digest"
MAX_METADATA_LENGTH = 128 * MIB  # characters: the largest certificate, if it cannot be compressed, and labels
MAX_METADATA_VALUES = 1_000_000  # in JSON; each takes about a hundred bytes in memory


@dataclass(frozen=True, eq=False)
class ClassifierManifest:
    """The manifest of an image classifier; docs/reference/artifact.md lists its keys.

    Attributes:
        labels: Class names, in the order of the network's outputs.
        pixels: The pixels that the graph takes.
        properties: What else was recorded at export, JSON values by name (network, training, agreement).
        certificate: Golden images and the expected answers; None if the artifact is uncertified.
        optional_outputs: Outputs of the graph that are computed only if they are requested.
    """

    labels: tuple[str, ...]
    pixels: PixelContract
    properties: Mapping[str, Any] = field(default_factory=dict)
    certificate: ClassifierCertificate | None = None
    optional_outputs: tuple[str, ...] = ()

    relative_tolerance: ClassVar[bool] = False  # differences of outputs are absolute

    @cached_property
    def image_inputs(self) -> Mapping[str, PixelContract]:
        """The inputs that take images, and the pixels of each."""
        return {INPUT: self.pixels}

    def predict_labels(self, outputs: Tensors) -> list[str]:
        """Return the most probable label for each row of the outputs.

        Args:
            outputs: ``probabilities``, float32 (N, K).
        """
        return [self.labels[index] for index in outputs[PROBABILITIES].argmax(axis=1).tolist()]

    def check_surroundings(self) -> None:
        """Check what the certificate says beyond the network: the image decoder and the order of the labels.

        Raises:
            DecoderMismatch: The installed image decoder gives other pixels.
            LabelsMismatch: A golden image would get another label.
        """
        if self.certificate is not None:
            self.certificate.check_decoder(self.pixels)
            self.certificate.check_labels(self.labels)

    def check_outputs(self, run: Run) -> None:
        """Run blank images, alone and as a batch, and check the shapes of the outputs.

        Args:
            run: Runs the network on tensors by name.

        Raises:
            ArtifactInvalid: There are more or fewer outputs than labels.
        """
        labels = len(self.labels)
        for images in (1, 2):
            answer = run({INPUT: np.zeros((images, *self.pixels.shape), np.uint8)})
            probabilities, logits = answer[PROBABILITIES], answer[LOGITS]
            if not probabilities.shape == logits.shape == (images, labels):
                raise ArtifactInvalid(f"{labels} labels but outputs of shape {probabilities.shape} and {logits.shape}")

    def to_metadata(self) -> dict[str, str]:
        """Convert the manifest to ONNX metadata properties: JSON values by sorted keys, and keys of other tools."""
        facts = {
            "labels": self.labels,
            **self.properties,
            "pixels": write_contract(self.pixels),
            "optional_outputs": self.optional_outputs,
        }
        if self.certificate:
            facts["certificate"] = self.certificate.to_json()
        return _join(_write_facts(facts), describe_classifier(self.labels, self.pixels, self.properties))


@dataclass(frozen=True, eq=False)
class TensorManifest:
    """The manifest of a network of tensors: any network that is not an image classifier.

    Attributes:
        properties: What was recorded at export, JSON values by name.
        certificate: Golden inputs and the expected outputs; None if the artifact is uncertified.
    """

    properties: Mapping[str, Any] = field(default_factory=dict)
    certificate: TensorCertificate | None = None

    labels: ClassVar[tuple[str, ...]] = ()
    image_inputs: ClassVar[Mapping[str, PixelContract]] = {}
    optional_outputs: ClassVar[tuple[str, ...]] = ()
    relative_tolerance: ClassVar[bool] = True  # differences of an output are relative to its largest value

    def predict_labels(self, outputs: Tensors) -> list[str]:
        """Return an empty list, since the network has no labels.

        Args:
            outputs: The network's outputs by name.
        """
        return []

    def check_surroundings(self) -> None:
        """Do nothing: there are no images to decode and no labels."""

    def check_outputs(self, run: Run) -> None:
        """Do nothing: the outputs may have any shape.

        Args:
            run: Runs the network on tensors by name.
        """

    def to_metadata(self) -> dict[str, str]:
        """Convert the manifest to ONNX metadata properties: JSON values by sorted keys, and ONNX's keys."""
        facts: dict[str, Any] = {"labels": self.labels, **self.properties}
        if self.certificate:
            facts["certificate"] = self.certificate.to_json()
        return _join(_write_facts(facts), describe_credits(self.properties))


Manifest = ClassifierManifest | TensorManifest


def read_manifest(metadata: Mapping[str, str]) -> Manifest:
    """Read the manifest from the metadata properties of an ONNX file.

    Args:
        metadata: ONNX metadata properties; those of other tools are ignored.

    Raises:
        ArtifactInvalid: Keys are missing, values are damaged, or no reader is known for the format version.
    """
    try:  # values that are not UTF-8 are bytes
        texts = {key.removeprefix(PREFIX): metadata[key] for key in metadata if key.startswith(PREFIX)}
        _check_extent(texts)
        facts = {name: json.loads(value) for name, value in texts.items() if PREFIX + name != DIGEST}
        version = facts.pop("format_version", None)
        return _find_reader(version)(facts, metadata)
    except RecursionError as error:
        raise ArtifactInvalid("the artifact's metadata is damaged: its JSON is nested too deeply") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as error:
        raise ArtifactInvalid(f"the artifact's metadata is damaged: {error!r}") from error


Reader = Callable[[dict[str, Any], Mapping[str, str]], Manifest]


def _find_reader(version: object) -> Reader:
    """Return the reader of a format version.

    Raises:
        ArtifactInvalid: There is none.
    """
    for known, reader in READERS.items():
        if version == known:
            return reader
    advice = "export it again or change evalmode's version"
    raise ArtifactInvalid(
        f"evalmode.format_version is {version}, this evalmode reads {', '.join(map(str, READERS))}: "
        + (advice if version is not None else "not an evalmode artifact; evalmode certify makes one"),
        format_version=version,
    )


def _read_version_3(facts: dict[str, Any], metadata: Mapping[str, str]) -> Manifest:
    """Read a manifest of version 3.

    Args:
        facts: The values of evalmode's keys, without their prefix.
        metadata: All metadata properties of the file.
    """

    def read_pixels(pixels: Mapping[str, Any]) -> PixelContract:
        height, width, channels = (int(pixels[side]) for side in ("height", "width", "channels"))
        return PixelContract(height, width, channels, Resize(jpeg_scaling=False))

    return _read(facts, metadata, read_pixels, lambda: ())


def _read_version_4(facts: dict[str, Any], metadata: Mapping[str, str]) -> Manifest:
    """Read a manifest of version 4, which states every rule of the pixel contract, and may have optional outputs.

    Args:
        facts: The values of evalmode's keys, without their prefix.
        metadata: All metadata properties of the file.
    """
    return _read(facts, metadata, read_contract, lambda: _read_optional_outputs(facts.pop("optional_outputs")))


def _read(
    facts: dict[str, Any],
    metadata: Mapping[str, str],
    read_pixels: Callable[[Any], PixelContract],
    read_optional: Callable[[], tuple[str, ...]],
) -> Manifest:
    """Read a manifest by the readers of what differs between the format versions."""
    labels, pixels = tuple(map(str, facts.pop("labels"))), facts.pop("pixels", None)
    certificate = facts.pop("certificate", None)
    if pixels is None:
        check_standard(metadata, describe_credits(facts))
        return TensorManifest(facts, None if certificate is None else TensorCertificate.from_json(certificate))
    contract = read_pixels(pixels)
    check_standard(metadata, describe_classifier(labels, contract, facts))
    optional = read_optional()
    if certificate is None:
        return ClassifierManifest(labels, contract, facts, None, optional)
    _check_equal("the temperature", certificate["temperature"], facts.get("temperature", 1.0))
    return ClassifierManifest(labels, contract, facts, ClassifierCertificate.from_json(certificate), optional)


def _read_optional_outputs(names: Any) -> tuple[str, ...]:
    """Read the list of optional outputs.

    Raises:
        ValueError: It is not a list of different names, or it has an output that every classifier computes.
    """
    strings = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not strings or len({*names, PROBABILITIES, LOGITS}) != len(names) + 2:
        raise ValueError(
            f"optional_outputs {str(names)[:80]}: expected different names, without {PROBABILITIES} and {LOGITS}"
        )
    return tuple(names)


# Every version since 3 stays readable. tests/evalmode/artifact/fixtures holds artifacts of each.
READERS: Mapping[int, Reader] = {3: _read_version_3, 4: _read_version_4}


def _write_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    stated = {"format_version": FORMAT_VERSION, **facts}
    return {PREFIX + name: json.dumps(stated[name], sort_keys=True) for name in sorted(stated)}


def _join(facts: Mapping[str, str], standard: Mapping[str, str]) -> dict[str, str]:
    """Join metadata properties, sorted by key."""
    return dict(sorted({**facts, **standard}.items()))


def _check_extent(texts: Mapping[str, str]) -> None:
    """Check that metadata do not take much more memory as JSON values than as text.

    Raises:
        ArtifactInvalid: There are too many characters or too many values.
    """
    length = sum(map(len, texts.values()))
    if length > MAX_METADATA_LENGTH:
        raise ArtifactInvalid(f"{length} characters of metadata, at most {MAX_METADATA_LENGTH} are allowed")
    values = sum(text.count(sign) for text in texts.values() for sign in "[{,")  # each value but the first has one
    if values > MAX_METADATA_VALUES:
        raise ArtifactInvalid(f"{values} values in the metadata, at most {MAX_METADATA_VALUES} are allowed")


def _check_equal(what: str, one: object, other: object) -> None:
    if one != other:
        raise ValueError(f"{what} is stated twice, as {one!r} and as {other!r}")
