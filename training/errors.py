"""The errors of training and export.

::

    EvalmodeError (evalmode.errors)
    ├── RunError               a run folder is missing, in use or damaged: exit 2
    ├── NetworkError           a network does not exist or cannot be used: exit 2
    ├── TorchUnusable          torch is installed but cannot be imported: exit 2
    ├── CommandKilled          a signal ended a command of the quickstart: exit 2
    ├── TrainingDiverged       a loss, gradient, weight or statistic is NaN or infinite: exit 1
    └── ExportRefused          a check of the export failed, nothing was published: exit 1
        ├── LabelsReordered     the data have other labels than the run, or another order
        ├── ModuleInTrainMode   a part of the network is in train mode
        ├── StatisticsReplaced  the weights files differ in batch norm statistics that training keeps
        ├── FoldMismatch        folding batch norm changed the network's outputs
        └── NetworksDisagree    ONNX Runtime and torch give different outputs
"""

from __future__ import annotations

from evalmode.errors import EvalmodeError


class RunError(EvalmodeError):
    """A run folder is missing, in use or damaged."""


class NetworkError(EvalmodeError):
    """A network does not exist, or it cannot be built for the data or run on the device."""


class TorchUnusable(EvalmodeError):
    """torch is installed but cannot be imported."""


class CommandKilled(EvalmodeError):
    """A signal other than an interrupt ended a command of the quickstart."""


class TrainingDiverged(EvalmodeError):
    """A loss, gradient, weight or batch norm statistic is NaN or infinite."""

    exit_code = 1


class ExportRefused(EvalmodeError):
    """A check of the export failed; nothing was published."""

    exit_code = 1


class LabelsReordered(ExportRefused):
    """The data have other labels than the run, or another order of the labels."""


class ModuleInTrainMode(ExportRefused):
    """A part of the network is in train mode."""


class StatisticsReplaced(ExportRefused):
    """The weights files of a run hold different batch norm statistics for a layer whose statistics training keeps."""


class FoldMismatch(ExportRefused):
    """Folding batch norm into the layer before it changed the network's outputs."""


class NetworksDisagree(ExportRefused):
    """ONNX Runtime and torch give different outputs."""
