"""The functions that training and export call with their progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.checkpoint import Epoch
    from training.datasets import Dataset
    from training.publish import Artifact, Variant
    from training.run import Run
    from training.run_metrics import Result


@dataclass(frozen=True)
class NetworkSummary:
    """The network of a training and where it is trained.

    Attributes:
        name: The name that ``--network`` takes.
        weights: Number of weights.
        multiply_adds: Multiplications with an addition for one image.
        device: ``cpu`` or ``cuda``.
        processes: Number of processes that train it.
        reason: Why this network was chosen, in words; "" if the user chose it.
    """

    name: str
    weights: int
    multiply_adds: int
    device: str
    processes: int
    reason: str = ""


@dataclass(frozen=True)
class StageFigures:
    """The result of one stage of the training of a pretrained network.

    Attributes:
        stage: ``features``, ``head`` or ``fine-tune``.
        seconds: Wall-clock time in seconds; of the present process, if the training was resumed.
        text: What the stage did, in words.
        val_accuracy: Accuracy on the validation images, from 0 to 1; None if the stage has none.
    """

    stage: str
    seconds: float
    text: str
    val_accuracy: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The end of a training.

    Attributes:
        run: The run, with its weights.
        best: Figures of the epoch whose weights the run keeps.
        result: What was measured with exact batch norm statistics.
        norm_layers: Number of batch norm layers with moving statistics.
        unmoved_layers: Number of those whose statistics training did not change.
        val_images: Number of validation images.
        test_images: Number of test images.
    """

    run: Run
    best: Epoch
    result: Result
    norm_layers: int
    unmoved_layers: int
    val_images: int
    test_images: int


class _Ignore:
    """Does nothing. An object rather than a function, so that ``help(Callbacks)`` shows a readable default."""

    def __call__(self, *_: object) -> None:
        pass

    def __repr__(self) -> str:
        return "ignore"


_ignore = _Ignore()


@dataclass(frozen=True, eq=False)
class Callbacks:
    """Functions to call with the progress of a training or an export; by default they do nothing.

    They are called in the thread that trains, and only in the first of several processes. An exception that one of
    them raises ends the training.

    Attributes:
        on_load: Called while data are loaded, with ``downloading``, ``decoding`` or ``features``, the number of bytes
            or images done, and their total.
        on_data: Called with the loaded data set.
        on_network: Called with the network, before the first step.
        on_step: Called after each training step with its number from 1, the number of steps in the epoch, and the loss.
        on_epoch: Called after each epoch with its figures.
        on_stage: Called after each stage of the training of a pretrained network with its figures.
        on_outcome: Called at the end of a training, before the report is written.
        on_report: Called with the path of the report.
        on_export: Called with ``exporting`` before a network is exported, and with ``quantizing`` before its int8
            variant is made. Both take long, because the result is checked.
        on_published: Called with each artifact once it is published.
        on_notice: Called with a sentence about what takes long or much space, before it begins.
        on_warning: Called with a sentence that the user should read.
    """

    on_load: Callable[[str, int, int], None] = _ignore
    on_data: Callable[[Dataset], None] = _ignore
    on_network: Callable[[NetworkSummary], None] = _ignore
    on_step: Callable[[int, int, float], None] = _ignore
    on_epoch: Callable[[Epoch], None] = _ignore
    on_stage: Callable[[StageFigures], None] = _ignore
    on_outcome: Callable[[Outcome], None] = _ignore
    on_report: Callable[[Path], None] = _ignore
    on_export: Callable[[str], None] = _ignore
    on_published: Callable[[Artifact | Variant], None] = _ignore
    on_notice: Callable[[str], None] = _ignore
    on_warning: Callable[[str], None] = _ignore


SILENT = Callbacks()
