"""What can go wrong on the way from images to an artifact.

::

    EvalmodeError (serving.errors)
    ├── DataError            the labelled images cannot be used as they are: exit 2
    ├── RunError             a run folder cannot be used: exit 2
    ├── NetworkError         no such network, or not for this data: exit 2
    ├── TorchUnusable        torch is installed and does not work: exit 2
    ├── CommandKilled        a signal ended a command of the quickstart: exit 2
    ├── TrainingDiverged     the loss is NaN or infinite: exit 1
    └── ExportRefused        a gate did not pass, nothing was published: exit 1
"""

from __future__ import annotations

from serving.errors import EvalmodeError


class DataError(EvalmodeError):
    """The labelled images cannot be used as they are."""


class RunError(EvalmodeError):
    """A run folder is missing, taken or damaged."""


class NetworkError(EvalmodeError):
    """No such network, or it cannot be built for this data, or not on this device."""


class TorchUnusable(EvalmodeError):
    """torch is installed and cannot be imported."""


class CommandKilled(EvalmodeError):
    """A signal that is no interrupt ended a command that the quickstart ran."""


class TrainingDiverged(EvalmodeError):
    """The loss is NaN or infinite."""

    exit_code = 1


class ExportRefused(EvalmodeError):
    """A gate did not pass; nothing was published."""

    exit_code = 1


class LabelsReordered(ExportRefused):
    """The data has other labels than the run, or in another order."""


class ModuleInTrainMode(ExportRefused):
    """A part of the network is in train mode."""


class FoldMismatch(ExportRefused):
    """Batch norm folded into the layer before it gives other answers."""


class NetworksDisagree(ExportRefused):
    """onnxruntime and torch give different results."""
