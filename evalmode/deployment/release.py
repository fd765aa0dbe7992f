"""A version of a model that is laid out for other tools, and the files of a layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from evalmode.artifact.manifest import ClassifierManifest, Manifest
from evalmode.artifact.sealing import open_artifact
from evalmode.artifact.signature import Signature, read_signature
from evalmode.limits import LARGEST_BATCH


@dataclass(frozen=True)
class Release:
    """A version of a model.

    Attributes:
        name: The model's name.
        version: The number of the version.
        artifact: The bytes of ``model.onnx``.
        report: The report of its training; None if there is none, or it may not be shown.
    """

    name: str
    version: int
    artifact: bytes
    report: Path | None = None

    @cached_property
    def _opened(self) -> tuple[Manifest, Signature]:
        graph, manifest = open_artifact(self.artifact)
        return manifest, read_signature(graph)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the artifact."""
        return self._opened[0]

    @property
    def classifier(self) -> ClassifierManifest | None:
        """The manifest, if the artifact is an image classifier."""
        return self.manifest if isinstance(self.manifest, ClassifierManifest) else None

    @property
    def signature(self) -> Signature:
        """The inputs and outputs of the graph."""
        return self._opened[1]

    @property
    def max_batch(self) -> int:
        """The largest batch that gives the same answers as single inputs, as far as the certificate says."""
        certificate = self.manifest.certificate
        return LARGEST_BATCH if certificate is not None and certificate.batch_invariant else 1


@dataclass(frozen=True)
class File:
    """A file of a layout. If there is one with another content, writing is refused.

    Attributes:
        content: The content.
        extends: The content of the present file, which ``content`` extends; None if it does not.
        is_editable: Whether people adapt the file to their servers, so that a present one is kept.
    """

    content: bytes
    extends: bytes | None = None
    is_editable: bool = False
