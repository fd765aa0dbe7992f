"""Load an artifact in this process."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from evalmode.artifact.repository import resolve_artifact
from evalmode.runtime.loading import load_model
from evalmode.runtime.model import Model


def load(path: str | PathLike[str]) -> Model:
    """Load an artifact, to classify images in this process with the same bits as a server on the CPU.

    Example:
        ``evalmode.load("model.onnx").predict("cat.jpg").label``

    Args:
        path: An artifact, or a folder of a model repository: a version's, or a model's, whose newest version is loaded.

    Returns:
        The model.

    Raises:
        ArtifactInvalid: The file is not an artifact, or cannot be read.
        UsageError: The folder holds no artifact.
    """
    found = resolve_artifact(Path(path))
    return load_model(found.path, name=found.name, version=found.version)
