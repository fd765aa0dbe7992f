"""Load an artifact in this process."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from evalmode.artifact.repository import ARTIFACT_FILE, find_artifact, list_versions
from evalmode.errors import UsageError
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
    path = Path(path)
    if not path.is_dir():
        return load_model(path)
    folder = path.absolute()
    if (path / ARTIFACT_FILE).is_file():
        return load_model(path / ARTIFACT_FILE, name=folder.parent.name, version=folder.name)
    versions = list_versions(folder.parent, folder.name)
    if not versions:
        raise UsageError(f"{path} holds no {ARTIFACT_FILE} and no version of a model")
    newest = find_artifact(folder.parent, folder.name, versions[-1])
    return load_model(newest, name=folder.name, version=str(versions[-1]))
