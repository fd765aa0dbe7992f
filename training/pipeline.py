"""Train, export and report as functions, which the command line and the Python API call.

torch is imported when a function is called, with the settings of `training.torch_runtime`.
"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from training.callbacks import SILENT, Callbacks
from training.options import ExportOptions, ReportOptions, TrainOptions
from training.torch_runtime import import_torch

if TYPE_CHECKING:
    from training.publish import Artifact
    from training.run import Run


def train(
    data: str | PathLike[str],
    out: str | PathLike[str],
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    callbacks: Callbacks = SILENT,
) -> Run:
    """Train a classifier on labelled images, and write the run into a folder.

    Args:
        data: A folder of <label>/<image> files, a published archive, or the name of a data set such as ``digits``.
        out: Run folder; new or empty, unless the training is resumed.
        options: How to train.
        callbacks: Functions to call with the progress.

    Returns:
        The run, with its best weights and its result. In all but the first of several processes it has no files.

    Raises:
        DataError: The data cannot be used.
        NetworkError: The network does not exist, or cannot be trained on these data or on this device.
        RunError: The folder is not empty, or holds a run with other options.
        TrainingDiverged: A loss or a gradient is NaN or infinite.
        TrainingStopped: Ctrl-C was pressed; the run keeps the best weights so far.
        TorchUnusable: Torch cannot be imported.
    """
    import_torch()
    if options.compare:
        from training.candidates import fit_candidates

        return fit_candidates(fspath(data), Path(out), options, callbacks)
    from training.fit import fit

    return fit(fspath(data), Path(out), options, callbacks)


def export(
    run: Run | str | PathLike[str],
    repository: str | PathLike[str],
    name: str,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    callbacks: Callbacks = SILENT,
) -> Artifact:
    """Export a run in eval mode, and publish it as ``repository/name/<next version>/model.onnx``.

    Args:
        run: A run with its best weights, or the path of its folder.
        repository: Folder of the model repository; it is created if it does not exist.
        name: Name of the model.
        options: How to export.
        callbacks: Functions to call with the progress.

    Returns:
        The published artifact.

    Raises:
        ExportRefused: ONNX Runtime disagrees with torch, or the labels of the data have changed.
        ProofFailed: A check of the certificate fails, or the int8 variant is not worth publishing.
        DataError: The data cannot be used.
        RunError: The run has no usable weights, or the data have changed.
        NameInvalid: The name cannot be used in a model repository.
        TorchUnusable: Torch cannot be imported.
    """
    import_torch()
    from training.publish import export_and_publish
    from training.run import Run

    run = run if isinstance(run, Run) else Path(run)
    return export_and_publish(run, Path(repository), name, options, callbacks)


def report(
    run: Run | str | PathLike[str],
    options: ReportOptions = ReportOptions(),  # noqa: B008 - frozen
    callbacks: Callbacks = SILENT,
) -> Path:
    """Write ``report.html`` into a run folder.

    Args:
        run: A run with its best weights, or the path of its folder.
        options: Where the data are.
        callbacks: Functions to call with the progress.

    Returns:
        Path of the report.

    Raises:
        DataError: The data cannot be used.
        RunError: The run has no usable weights, or the data have changed.
        TorchUnusable: Torch cannot be imported.
    """
    import_torch()
    from training.fit import write_run_report
    from training.loading import reload_data
    from training.run import Run

    opened = run if isinstance(run, Run) else Run.open(Path(run))
    return write_run_report(opened, reload_data(opened, options.data, options.cache, callbacks), callbacks)
