"""Train, export and certify from Python; training and export show lines and progress bars as the command does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from os import PathLike
from typing import Any

import evalmode
from evalmode.certification.certified import CertifiedClassifier
from evalmode.certification.foreign import certify_classifier
from evalmode.certification.preprocessing import ClassifierOptions, Preprocessing
from evalmode.errors import UsageError
from evalmode.images.contract import PixelContract
from evalmode.options import make_config
from evalmode.own_packages import import_own

# The annotations name classes of training by their public names, which are imported when the annotations are evaluated.
# Each function first imports training by `import_own`, which raises if a folder of the user hides the package.


def train(
    data: str | PathLike[str], out: str | PathLike[str], *, callbacks: evalmode.Callbacks | None = None, **options: Any
) -> evalmode.Run:
    """Train a classifier on labelled images.

    Examples:
        ```python
        run = evalmode.train("photos", "run", epochs=5)
        print(run.read_result().test_accuracy)
        ```

    Args:
        data: A folder of ``<label>/<image>`` files, a published archive, or the name of a data set such as ``digits``.
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
    run: evalmode.Run | str | PathLike[str],
    repository: str | PathLike[str],
    name: str,
    *,
    callbacks: evalmode.Callbacks | None = None,
    **options: Any,
) -> evalmode.Artifact:
    """Export a run in eval mode, and publish it as ``repository/name/<next version>/model.onnx``.

    Examples:
        ```python
        artifact = evalmode.export("run", "models", "photos")
        print(artifact.path, artifact.quality.accuracy)
        ```

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


def certify(
    network: Any,
    images: str | PathLike[str],
    labels: str | PathLike[str] | Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    options: ClassifierOptions = ClassifierOptions(),  # noqa: B008  frozen
    *,
    contract: PixelContract | None = None,
) -> CertifiedClassifier:
    """Certify an image classifier of another tool: an ONNX file, a folder with one, or a torch module.

    Preprocessing and softmax become part of the graph. The network is measured on the images, and some of them become
    golden images, which are in the artifact. What no argument states is read from the network's files. A torch module
    is exported, and ONNX Runtime must answer as the module does for the decoded pixels of all images.

    Examples:
        ```python
        evalmode.certify("resnet.onnx", "photos", "labels.txt", evalmode.Preprocessing((0, 1)))
        ```

        A torch module:

        ```python
        resize = evalmode.Resize(0.875, jpeg_scaling=False, keeps_exact_size=False)  # torchvision's
        contract = evalmode.PixelContract(224, 224, 3, resize)
        preprocessing = evalmode.Preprocessing((0, 1))
        certified = evalmode.certify(module.eval(), "photos", ["cat", "dog"], preprocessing, contract=contract)
        ```

    Args:
        network: An ONNX file, a folder with one, or a ``torch.nn.Module`` in eval mode that turns images
            (N, C, H, W) into logits or probabilities of K labels; it is not changed.
        images: Labelled images: a folder ``<label>/<image>``, or a table of files and labels.
        labels: K labels in the order of the network's output, or a text file of them, one a line; by default those
            that the network's files state.
        preprocessing: The preprocessing that the network expects; by default that of its files.
        options: How it is certified.
        contract: Size, channels and resize of the images that the network takes; by default those of its files.

    Returns:
        The artifact, and how good it is on the images.

    Raises:
        DataError: A table does not fit its images or the labels.
        UsageError: The network, a folder or an option cannot be used, or a required fact is missing.
        ModuleInTrainMode: A part of a torch module is in train mode.
        NetworkError: A torch module fails, or cannot be exported.
        ProofFailed: The network did not pass a check.
    """
    torch = sys.modules.get("torch")  # not imported: there is no module without it
    if torch is not None and isinstance(network, torch.nn.Module):
        certify_module = import_own("training.modules").certify_module
        certified: CertifiedClassifier = certify_module(network, images, labels, preprocessing, contract, options)
        return certified
    if not isinstance(network, str | PathLike):
        raise UsageError(
            f"network is a {type(network).__module__}.{type(network).__name__}: expected an ONNX file, a folder with "
            "one, or a torch module; export it with tf2onnx, skl2onnx or another exporter to ONNX"
        )
    return certify_classifier(network, images, labels, preprocessing, contract, options)
