"""Artifacts that were made of networks of other tools."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from evalmode.artifact.publishing import publish
from evalmode.artifact.sealing import digest_file
from evalmode.artifact.tensors import Tensors
from evalmode.certification.metrics import Quality
from evalmode.certification.reference import Reference
from evalmode.images.pixels import PixelContract


@dataclass(frozen=True, eq=False, repr=False)
class Certified:
    """An artifact that was made of another tool's network.

    Attributes:
        artifact: The bytes of a ``model.onnx``.
    """

    artifact: bytes

    @property
    def digest(self) -> str:
        """``sha256:`` and the hexadecimal digest of the file."""
        return digest_file(self.artifact)

    def publish(self, repository: str | PathLike[str], name: str) -> Path:
        """Publish the artifact as the next version of a model.

        Args:
            repository: The folder of the model repository; it is created if it is missing.
            name: The model's name.

        Returns:
            The path of the published file, ``repository/name/version/model.onnx``.

        Raises:
            NameInvalid: The name is not allowed.
            OSError: The file cannot be written.
        """
        return publish(Path(repository), name, self.artifact)


@dataclass(frozen=True, eq=False, repr=False)
class CertifiedClassifier(Certified):
    """An image classifier with its certificate.

    Attributes:
        labels: K labels, in the order of the output.
        contract: Height, width and channels of the images.
        layout: The layout of the network's input: "NCHW", "NHWC" or "flat".
        quality: Measured on the user's images.
        references: How well it agrees with its own library, for each source of the library's answers.
        notes: What was found out about the network or changed in it, a sentence each.
    """

    labels: tuple[str, ...]
    contract: PixelContract
    layout: str
    quality: Quality
    references: tuple[Reference, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        size = "x".join(map(str, self.contract.shape))
        return f"CertifiedClassifier({len(self.labels)} labels, {size}, accuracy {self.quality.accuracy:.4f})"


@dataclass(frozen=True, eq=False, repr=False)
class CertifiedNetwork(Certified):
    """A network of tensors with its certificate.

    Attributes:
        inputs: The golden inputs by name, the batch along the first axis of each.
        notes: What was found out about the network or changed in it, a sentence each.
    """

    inputs: Tensors
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"CertifiedNetwork({', '.join(self.inputs)})"
