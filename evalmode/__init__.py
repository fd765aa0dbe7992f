"""model.onnx + image bytes -> probabilities: the server, its client, and the same without a server."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evalmode.runtime.model import Model

__version__ = "0.2.0"


def load(path: str | PathLike[str]) -> Model:
    """Load an artifact to classify images in this process, bit for bit as the server would.

    Example:
        ``evalmode.load("model.onnx").predict("cat.jpg").label``

    Raises:
        ArtifactInvalid: the file is not an evalmode artifact.
    """
    from evalmode.runtime.loading import load_model  # the bare install has no onnxruntime

    return load_model(path)
