"""model.onnx + image bytes -> probabilities: the server, its client, and the same without a server."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalmode.runtime.model import Model
    from training.callbacks import Callbacks
    from training.publish import Artifact
    from training.run import Run

__version__ = "0.1.0"


def load(path: str | PathLike[str]) -> Model:
    """Load an artifact to classify images in this process, bit for bit as the server would.

    Example:
        ``evalmode.load("model.onnx").predict("cat.jpg").label``

    Raises:
        ArtifactInvalid: the file is not an evalmode artifact.
    """
    from evalmode.runtime.model import load_model  # the bare install has no onnxruntime

    return load_model(path)


def train(
    data: str | PathLike[str], out: str | PathLike[str], *, callbacks: Callbacks | None = None, **options: Any
) -> Run:
    """Train a classifier on labelled images.

    Example:
        ``run = evalmode.train("photos", "run", epochs=5)``

    Args:
        data: a folder of <class>/<image> files, a published archive, or the name of a data set such as ``digits``.
        out: run folder; new or empty, unless the training is resumed.
        callbacks: functions to call with the progress. By default, lines and progress bars are shown.
        **options: the options of ``evalmode train``: fields of ``training.options.TrainOptions``.

    Returns:
        The run: its result and its weights.

    Raises:
        EvalmodeError: the data, the network or the folder cannot be used, or the training diverged; see
            ``training.pipeline.train``.
    """
    from evalmode.cli.display import show_progress
    from training import pipeline
    from training.options import TrainOptions

    with show_progress(callbacks) as shown:
        return pipeline.train(data, out, TrainOptions(**options), shown)


def export(
    run: Run | str | PathLike[str],
    repository: str | PathLike[str],
    name: str,
    *,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> Artifact:
    """Export a run in eval mode, and publish it as ``repository/name/<next version>/model.onnx``.

    Example:
        ``artifact = evalmode.export("run", "models", "photos")``

    Args:
        run: a run, or the path of its folder.
        repository: folder of the model repository.
        name: name of the model.
        callbacks: functions to call with the progress. By default, lines and progress bars are shown.
        **options: the options of ``evalmode export``: fields of ``training.options.ExportOptions``.

    Returns:
        The published artifact, with its path and digest.

    Raises:
        EvalmodeError: the run cannot be used, or a check failed and nothing was published; see
            ``training.pipeline.export``.
    """
    from evalmode.cli.display import show_progress
    from training import pipeline
    from training.options import ExportOptions

    with show_progress(callbacks) as shown:
        return pipeline.export(run, repository, name, ExportOptions(**options), shown)
