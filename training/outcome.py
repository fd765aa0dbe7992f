"""The outcome of a training: described at its end, and read from the folder of a run that is finished."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn import functional

from training.callbacks import Outcome
from training.checkpoint import Epoch
from training.datasets import Dataset, Split
from training.errors import RunError
from training.run import BEST, EXACT, INITIAL, Run
from training.run_metrics import Result
from training.statistics import list_moved, list_norms
from training.tensors import describe_difference


def describe_outcome(
    run: Run, best: Epoch, result: Result, network: nn.Module, moved: Collection[str], dataset: Dataset
) -> Outcome:
    """Describe the outcome of a training.

    Args:
        run: The run.
        best: Figures of the epoch whose weights the run keeps.
        result: The result.
        network: The network.
        moved: Names of the batch norm layers whose statistics training changed.
        dataset: The data set.
    """
    norms = list_norms(network).keys()
    return Outcome(run, best, result, len(norms), len(norms - set(moved)), len(dataset.val), len(dataset.test))


def read_outcome(run: Run, network: nn.Module, dataset: Dataset) -> Outcome | None:
    """Read the outcome of a training that is finished.

    Args:
        run: The run.
        network: Its network, with any weights.
        dataset: Its data set.

    Returns:
        The outcome; None if the training is not finished, or if its weights are missing, damaged or of another network.
    """
    try:
        result = run.read_result()
        if describe_difference(network, run.read_weights(EXACT)):
            return None
        moved = list_moved(run.read_statistics(INITIAL), run.read_statistics(BEST))
        best = _read_best(run, result, dataset.val)
    except (RunError, KeyError, TypeError, ValueError):  # a file is missing or damaged
        return None
    return describe_outcome(run, best, result, network, moved, dataset)


def _read_best(run: Run, result: Result, val: Split) -> Epoch:
    """Read the figures of the epoch whose weights the run keeps; if they are those of the head, measure its loss."""
    if result.best_epoch:
        [figures] = [line for line in run.metrics.read() if line.get("epoch") == result.best_epoch]
        return Epoch(**figures)
    loss = functional.cross_entropy(run.read_logits()["val"], torch.from_numpy(val.targets)).item()
    return Epoch(0, loss, 0.0, result.exact_val_accuracy, loss, 0.0, 0.0, [], [])
