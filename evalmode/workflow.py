"""Train and export from Python, with lines and progress bars as the command shows them."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from evalmode.options import make_config
from evalmode.own_packages import import_own

if TYPE_CHECKING:
    from training.callbacks import Callbacks
    from training.publish import Artifact
    from training.run import Run

# Each function first imports training by `import_own`, which raises if a folder of the user hides the package.


def train(
    data: str | PathLike[str], out: str | PathLike[str], *, callbacks: Callbacks | None = None, **options: Any
) -> Run:
    """Train a classifier on labelled images.

    Example::

        run = evalmode.train("photos", "run", epochs=5)
        print(run.read_result().test_accuracy)

    Args:
        data: A folder of <class>/<image> files, a published archive, or the name of a data set such as ``digits``.
        out: Run folder; new or empty, unless the training is resumed.
        callbacks: Functions to call with the progress. By default, lines and progress bars are shown.
        **options: The options of ``evalmode train``: fields of ``training.options.TrainOptions``.

    Returns:
        The run: its result and its weights.

    Raises:
        UsageError: An option is unknown or its value is invalid.
        EvalmodeError: The data, the network or the folder cannot be used, or the training diverged; the classes are
            those of ``training.pipeline.train``.
    """
    import_own("training.pipeline")
    from evalmode.display import show_progress
    from training import pipeline
    from training.options import TrainOptions

    with show_progress(callbacks) as shown:
        return pipeline.train(data, out, make_config(TrainOptions, options, "a training"), shown)


def export(
    run: Run | str | PathLike[str],
    repository: str | PathLike[str],
    name: str,
    *,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> Artifact:
    """Export a run in eval mode, and publish it as ``repository/name/<next version>/model.onnx``.

    Example::

        artifact = evalmode.export("run", "models", "photos")
        print(artifact.path, artifact.quality.accuracy)

    Args:
        run: A run, or the path of its folder.
        repository: Folder of the model repository.
        name: Name of the model.
        callbacks: Functions to call with the progress. By default, lines and progress bars are shown.
        **options: The options of ``evalmode export``: fields of ``training.options.ExportOptions``.

    Returns:
        The published artifact, with its path and digest.

    Raises:
        UsageError: An option is unknown or its value is invalid.
        EvalmodeError: The run cannot be used, or a check failed and nothing was published; the classes are those of
            ``training.pipeline.export``.
    """
    import_own("training.pipeline")
    from evalmode.display import show_progress
    from training import pipeline
    from training.options import ExportOptions

    with show_progress(callbacks) as shown:
        return pipeline.export(run, repository, name, make_config(ExportOptions, options, "an export"), shown)
